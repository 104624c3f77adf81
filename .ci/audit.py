"""Holds the locked versions against the advisory database of PyPI: `make audit`.

Fails on a known vulnerability, and when some versions cannot be looked up. Where the database cannot be reached at all, or behind a mirror
that carries packages and no advisories, it says so and fails nothing: what is wrong then is the network, not the lock.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parents[1] / "requirements-dev.lock"  # what ships is in it, in the same versions; a test holds that

_UNREACHABLE = re.compile("ConnectionError|ConnectTimeout|Max retries|resolve|timed out|ServiceError|ProxyError|HTTPError", re.IGNORECASE)


def verdict(report: dict[str, Any] | None, errors: str) -> tuple[int, str]:
    """Exit code and what to say.

    Args:
        report: of pip-audit, None where it wrote none.
        errors: what it wrote to stderr.
    """
    if report is None:
        if _UNREACHABLE.search(errors):
            return 0, f"NOT AUDITED: the advisory database cannot be reached: {errors.strip().splitlines()[-1]}"
        return 1, f"pip-audit failed:\n{errors}"
    found = report["dependencies"]
    vulnerable = [
        f"{one['name']} {one['version']}: {flaw['id']}, repaired in {', '.join(flaw['fix_versions']) or 'no release yet'}"
        for one in found
        for flaw in one.get("vulns", ())
    ]
    if vulnerable:
        return 1, "known vulnerabilities:\n  " + "\n  ".join(vulnerable)
    skipped = [one["name"] for one in found if "skip_reason" in one]
    if len(skipped) == len(found):
        return 0, f"NOT AUDITED: the package index knows none of {len(found)} versions' advisories; it is a mirror without them"
    if skipped:
        return 1, f"{len(skipped)} of {len(found)} versions could not be looked up: {', '.join(skipped)}"
    return 0, f"{len(found)} locked versions, no known vulnerability"


def main() -> int:
    """Runs pip-audit over the lock."""
    command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", "-r", str(LOCK)]
    done = subprocess.run([*command, "--progress-spinner", "off", "-f", "json"], capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        report = None
    code, text = verdict(report, done.stderr)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())

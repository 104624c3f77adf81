"""Constants of the scoring recipe, shared by both backends, by training and by the tests.

They belong to the method, not to a deployment: one set for all data. What an operator may choose is in `Options`.
numba compiles them into the kernels, which is why naming it here matters: jit.py renews machine code when such a file changes.
"""

from typing import Final

# --- front end: robust exponentially weighted normaliser -------------------------------------------------------------
SCALER_SAMPLES: Final = 1000.0
"""Memory of mean, variance and mean step: plain averages while younger, exponentially weighted after."""
CLIP_SD: Final = 4.0
"""A sample moves the normaliser by at most this many standard deviations, so that an incident does not become the scale."""
CLIP_SHARE: Final = 0.05
"""... or by this share of its distance, so that a series that was constant can still find a new scale,"""
CLIP_FAR: Final = 100.0
"""... but never by more than this many: one absurd value must not blind a series."""
CLIP_FAR_STEP: Final = 1000.0
"""The same for the mean step, which grows by its first power and not by its square."""
RELATIVE_FLOOR: Final = 1e-4
"""Smallest standard deviation relative to the mean: differences below it are float noise of the producer."""
ABSOLUTE_FLOOR: Final = 1e-15
"""... and at all: what arithmetic leaves of values around one that cancel, while values of 1e-12 are values."""
INPUT_LIMIT: Final = 8.0
"""Network inputs are clamped to ± this (asinh units: ± 1490 standard deviations)."""
VALUE_LIMIT: Final = 1e150
"""Larger magnitudes are judged as this one, so that squares stay finite."""
BAND_LIMIT: Final = 12.0
"""Largest |u| of the expected band."""

# --- order, gaps, counters --------------------------------------------------------------------------------------------
LATE_RUN: Final = 8
"""This many late samples in a row mean that the producer's clock was set back: the newest is taken as the present."""
GAP_STEPS: Final = 10.0
"""A pause longer than this many usual steps: the difference to the last value says nothing, so it is taken as zero."""
STEP_SAMPLES: Final = 16.0
"""Memory of the usual step,"""
SPREAD_SAMPLES: Final = 32.0
"""and of how far steps are from it."""
COUNTER_AGE: Final = 64
"""At this age a series that never fell (but for one restart from below half) and rose at least half the time is a counter."""

# --- novelty ----------------------------------------------------------------------------------------------------------
PROTOTYPES: Final = 32
PROTOTYPE_SAMPLES: Final = 2000.0
PROTOTYPE_HALVING: Final = 1386
"""Integer weights are halved every 1386 samples: ln 2 times PROTOTYPE_SAMPLES."""
PROTOTYPE_UNIT: Final = 8
"""Weight of one sample in the int16 column: 2 * 1386 * 8 stays below 2^15."""
PROTOTYPE_NEW: Final = 0.5
PROTOTYPE_REPLACE: Final = 1.5
PROTOTYPE_RATE: Final = 0.01
FIXED_POINT: Final = 2048.0
"""int16 fixed point: ± 16 in steps of 1/2048. Half precision would lose slow decay."""

# --- calibration: tail evidence per channel ----------------------------------------------------------------------------
BINS: Final = 32
BIN_LOW: Final = -3.0
BIN_WIDTH: Final = 0.2
"""Natural logarithm of the error: 32 bins from e^-6 to e^4."""
HISTOGRAM_SAMPLES: Final = 8000.0
HISTOGRAM_HALVING: Final = 5545
HISTOGRAM_UNIT: Final = 2
TAIL_SHARE: Final = 0.1
TAIL_PRIOR_COUNT: Final = 4.0
TAIL_PRIOR_MEAN: Final = 0.25
"""Exponential tail of the log error above the 90 % quantile; the prior steadies it while few samples lie there."""
FAMILIAR: Final = 4
"""Errors that were as large before are as likely as they were often; it takes this many, or one incident would hide the next."""
CLUSTER_RARITY: Final = 3.0
"""From these many powers of ten on a sample is one of a cluster, with those of its channel that follow while they are as rare,"""
CLUSTER_PACE: Final = 128
"""and a cluster counts as one: its first sample is learned and then each of this number, so that one incident of an hour does not teach a
series that such hours are usual, and what goes on for long does."""
CLUSTER_LONGEST: Final = 32_000
"""Where its count ends, a multiple of CLUSTER_PACE, in the int16 column."""
LENGTH_COEFFICIENT: Final = 0.5
EVIDENCE_AGE: Final = 50
EVIDENCE_LIMIT: Final = 12.0

# --- range guard --------------------------------------------------------------------------------------------------------
GUARD_TOLERANCE: Final = 0.05
GUARD_SAMPLES: Final = 10_000.0
GUARD_EVIDENCE: Final = 4.0
GUARD_GROWTH: Final = 10.0
"""The range grows to at most this many times its width by one sample."""

# --- flat line guard ------------------------------------------------------------------------------------------------------
FLAT_RUN: Final = 30
"""A value must stand still for this many samples, and for four times the longest time so far, before that is evidence."""
FLAT_LONG: Final = 500
"""A value that has stood still for this long is the new normal."""
FLAT_LIMIT: Final = 16.0

# --- alerting ---------------------------------------------------------------------------------------------------------
WARMUP_SAMPLES: Final = 100
YOUNG_SAMPLES: Final = 1000.0
"""A series younger than this has seen little of what is usual for it,"""
YOUNG_DECADES: Final = 1.118
"""and has to be as strange as what is so many powers of ten rarer, for each power of ten that it is younger."""
ENVELOPE_SAMPLES: Final = 125.0
"""Refractory: after an alarm a new one must exceed an envelope that decays over this many samples."""
CONTROL_RATE: Final = 1e-3
"""How often a series crosses the level by which the alert budget is checked, for each try: often enough to be counted, strange enough to be
like an alarm."""
CONTROL_AGE: Final = YOUNG_SAMPLES
"""Younger series are not counted."""
CONTROL_REST: Final = 200
"""What crosses in a cluster counts once: after evidence above the level so many samples below it come before the series is a try again.
Longer than the refractory of alarms, because an incident swells through the level before and after it is one."""
TRIAL_MS: Final = 30_000.0
"""Samples closer together than this are taken as no independent tries: the alert budget is shared out over half minutes at the finest."""
LEVEL_SAMPLES: Final = 16.0
"""Smoothing of u that gives the second novelty channel its context."""
LONG_SAMPLES: Final = 10_000.0
"""Memory of the normaliser that knows what is usual in the long run: a shift of hours is still far from it,"""
LONG_WEIGHT: Final = 2.0
"""and so much evidence is a value for each unit of asinh that it is far."""
SUSTAINED_SAMPLES: Final = 10.0
"""Exponentially weighted span over which evidence, with that, is smoothed: what goes on is as strange as what begins."""
SUSTAINED_SHARE: Final = 0.8
"""Part of it that counts beside the evidence of a single sample: more, and slow drifts alarm."""
JOINT_SAMPLES: Final = 15.0
"""Exponentially weighted span over which the joint error of F > 1 is smoothed: "still abnormal", not "new just now"."""
JOINT_LARGEST: Final = 0.3
"""Weight of the evidence of the largest error of a sample, beside that of all together: an incident may begin in one feature."""
JOINT_FLOOR: Final = 0.3
"""Smallest scale of a feature's forecast error, in asinh units: to miss by less what is always forecast exactly is hardly strange."""
JOINT_CLIP_SD: Final = 20.0
"""As CLIP_SD, for F > 1: a scale that heavy tails widen keeps single features from deciding everything,"""
JOINT_ERROR_CLIP: Final = 10.0
"""and likewise the scale of errors learns from at most this many times itself."""
JOINT_LAGS: Final = (0, 1, 3, 7)
"""A joint network forecasts by a linear map of these inputs, 0 the newest, to which the decoder adds what is not linear."""
JOINT_SCALER_SAMPLES: Final = 10_000.0
"""Memory of the normaliser for F > 1: a slow one gave a better ranking on multivariate data."""
JOINT_LIMIT: Final = 30.0
"""A feature's error counts as at most this many times its scale."""
ERROR_SAMPLES: Final = 500.0
BAND_ERRORS: Final = 4.0
"""Half width of the expected band in mean absolute forecast errors."""
RECENT: Final = 16
"""Inputs kept in the row, for re-encoding after a change of weights and for explaining."""
EPISODE_BYTES: Final = 96
"""Room in the row for the alert episode; its meaning belongs to anomalyd.alerts."""

#!/usr/bin/env bash
# A Kubernetes control plane on loopback, without containers, Docker or root: what a chart meets when it is installed, but for nodes. Two of those
# are pretended by kwok: pods are scheduled, become Ready and jobs complete, but nothing runs in them.
#
#   control-plane.sh build     compile it; once a machine, ten minutes or more on two cores. Wants go, etcd, openssl, python3 with PyYAML (PYTHON=…)
#   control-plane.sh up        start it, empty; tells what to export for kubectl and helm
#   control-plane.sh down      stop it
#
# All of it lies in CONTROL_PLANE_HOME (~/.cache/control-plane): bin/ with helm, kubectl and kubeconform too, crds/ that are loaded (Prometheus
# Operator, KEDA), schemas/ for kubeconform, logs/. It listens on CONTROL_PLANE_PORT (16443) and the five ports behind.
set -euo pipefail

KUBERNETES=1.36.3
LIBRARIES=0.36.3 # the release of Kubernetes' modules that belongs to it
HELM=4.3.1
KUBECONFORM=0.8.0
KWOK=0.8.0
PROMETHEUS_OPERATOR=0.85.0
KEDA=2.21.0

here=$(cd "$(dirname "$0")" && pwd)
home=${CONTROL_PLANE_HOME:-$HOME/.cache/control-plane}
port=${CONTROL_PLANE_PORT:-16443}
api=$port etcd=$((port + 1)) etcd_peer=$((port + 2)) controllers=$((port + 3)) scheduler=$((port + 4)) kwok=$((port + 5))
export PATH=$home/bin:$PATH KUBECONFIG=$home/pki/admin.kubeconfig

# --- build ----------------------------------------------------------------------------------------------------------

build() {
    mkdir -p "$home"/{bin,crds,schemas,src}
    local needed
    for needed in go etcd openssl; do
        command -v "$needed" >/dev/null || { echo "control-plane.sh: install $needed (Debian: golang, etcd-server, openssl)" >&2; exit 1; }
    done
    export CGO_ENABLED=0 GOBIN=$home/bin GOFLAGS="-mod=mod -buildvcs=false -modcacherw -p=${CONTROL_PLANE_JOBS:-2}"
    tool kwok "sigs.k8s.io/kwok/cmd/kwok@v$KWOK"
    tool helm "helm.sh/helm/v4/cmd/helm@v$HELM"
    tool kubeconform "github.com/yannh/kubeconform/cmd/kubeconform@v$KUBECONFORM"
    kubernetes
    definitions
}

tool() { # name, package
    [ -x "$home/bin/$1" ] || { echo "== $1"; go install "$2"; }
}

module() { # path@version: the folder of its sources
    go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'
}

kubernetes() {
    local tree=$home/src/kubernetes-$KUBERNETES component
    if [ ! -d "$tree" ]; then
        # Published without the modules that it is made of ("staging"); those are published, too, each by itself.
        rm -rf "$tree.new"
        cp -r "$(module "k8s.io/kubernetes@v$KUBERNETES")" "$tree.new"
        chmod -R u+w "$tree.new"
        rm -rf "$tree.new"/{vendor,staging,go.work,go.work.sum}
        sed -i -E -e '/sample-cli-plugin/d' -e "s#=> \./staging/src/(k8s\.io/[a-z0-9-]+)#=> \1 v$LIBRARIES#" "$tree.new/go.mod"
        mv "$tree.new" "$tree"
    fi
    # Clients and servers compare versions, so these have to know theirs.
    local version="-X k8s.io/component-base/version.gitVersion=v$KUBERNETES -X k8s.io/client-go/pkg/version.gitVersion=v$KUBERNETES"
    version+=" -X k8s.io/component-base/version.gitMajor=${KUBERNETES%%.*} -X k8s.io/component-base/version.gitMinor=$(cut -d. -f2 <<<"$KUBERNETES")"
    for component in kube-apiserver kube-controller-manager kube-scheduler kubectl; do
        [ -x "$home/bin/$component" ] && continue
        echo "== $component $KUBERNETES"
        (cd "$tree" && go build -trimpath -ldflags "-s -w $version" -o "$home/bin/$component" "./cmd/$component")
    done
}

definitions() {
    local operator keda stages stage
    operator=$(module "github.com/prometheus-operator/prometheus-operator@v$PROMETHEUS_OPERATOR")
    keda=$(module "github.com/kedacore/keda/v2@v$KEDA")
    stages=$(module "sigs.k8s.io/kwok@v$KWOK")/kustomize/stage
    cp -f "$operator"/example/prometheus-operator-crd/*_{servicemonitors,podmonitors,prometheusrules}.yaml "$home/crds"
    cp -f "$keda/config/crd/bases/keda.sh_scaledobjects.yaml" "$home/crds"
    # What becomes of nodes and pods.
    for stage in "$stages"/node/fast/node-initialize.yaml "$stages"/node/heartbeat-with-lease/*lease.yaml "$stages"/pod/fast/pod-*.yaml; do
        echo ---
        cat "$stage"
    done >"$home/stages.yaml"
    "${PYTHON:-python3}" "$here/schemas.py" "$home/schemas/v$KUBERNETES-standalone-strict" "$home/src/kubernetes-$KUBERNETES/api/openapi-spec/swagger.json" \
        "$home"/crds/*.yaml
}

# --- certificates ---------------------------------------------------------------------------------------------------

certificates() {
    mkdir -p "$home/pki"
    cd "$home/pki"
    openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=control-plane -keyout ca.key -out ca.crt 2>/dev/null
    certificate server /CN=kube-apiserver "subjectAltName=IP:127.0.0.1,IP:10.0.0.1,DNS:localhost,DNS:kubernetes.default.svc"
    user admin /O=system:masters/CN=admin
    user controllers /CN=system:kube-controller-manager
    user scheduler /CN=system:kube-scheduler
    openssl genrsa -out accounts.key 2048 2>/dev/null
    openssl rsa -in accounts.key -pubout -out accounts.pub 2>/dev/null
    cd "$OLDPWD"
}

certificate() { # name, subject, extension
    openssl req -newkey rsa:2048 -nodes -subj "$2" -keyout "$1.key" -out "$1.csr" 2>/dev/null
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -out "$1.crt" -extfile <(echo "$3") 2>/dev/null
}

user() { # name, subject
    certificate "$1" "$2" extendedKeyUsage=clientAuth
    cat >"$1.kubeconfig" <<END
apiVersion: v1
kind: Config
current-context: loopback
contexts: [{name: loopback, context: {cluster: loopback, user: $1}}]
clusters: [{name: loopback, cluster: {server: "https://127.0.0.1:$api", certificate-authority: "$home/pki/ca.crt"}}]
users: [{name: $1, user: {client-certificate: "$home/pki/$1.crt", client-key: "$home/pki/$1.key"}}]
END
}

# --- run ------------------------------------------------------------------------------------------------------------

up() {
    [ -f "$home/stages.yaml" ] || { echo "control-plane.sh: not built; run $0 build" >&2; exit 1; }
    down
    rm -rf "$home/data"
    mkdir -p "$home"/{run,logs}
    certificates
    trap 'echo "control-plane.sh: it did not come up; $home/logs says why" >&2; down' ERR
    begin etcd etcd --data-dir "$home/data" --unsafe-no-fsync --initial-cluster "default=http://127.0.0.1:$etcd_peer" \
        --listen-client-urls "http://127.0.0.1:$etcd" --advertise-client-urls "http://127.0.0.1:$etcd" \
        --listen-peer-urls "http://127.0.0.1:$etcd_peer" --initial-advertise-peer-urls "http://127.0.0.1:$etcd_peer"
    # Lists as streams want an etcd from 3.4.25 on, and Debian's is older: clients would try, fail and wait, for half a minute at a time.
    export KUBE_FEATURE_WatchListClient=false
    begin apiserver kube-apiserver --feature-gates WatchList=false --bind-address 127.0.0.1 --advertise-address 127.0.0.1 --secure-port "$api" \
        --etcd-servers "http://127.0.0.1:$etcd" --endpoint-reconciler-type none --service-cluster-ip-range 10.0.0.0/24 --authorization-mode RBAC \
        --tls-cert-file "$home/pki/server.crt" --tls-private-key-file "$home/pki/server.key" --client-ca-file "$home/pki/ca.crt" \
        --service-account-issuer https://kubernetes.default.svc \
        --service-account-key-file "$home/pki/accounts.pub" --service-account-signing-key-file "$home/pki/accounts.key"
    until_true 120 "the API server is ready" kubectl get --raw /readyz
    begin controllers kube-controller-manager --kubeconfig "$home/pki/controllers.kubeconfig" --bind-address 127.0.0.1 --secure-port "$controllers" \
        --leader-elect=false --use-service-account-credentials \
        --service-account-private-key-file "$home/pki/accounts.key" --root-ca-file "$home/pki/ca.crt"
    begin scheduler kube-scheduler --kubeconfig "$home/pki/scheduler.kubeconfig" --bind-address 127.0.0.1 --secure-port "$scheduler" --leader-elect=false
    begin kwok kwok --kubeconfig "$KUBECONFIG" --config "$home/stages.yaml" --manage-all-nodes --server-address "127.0.0.1:$kwok" \
        --node-ip 127.0.0.1 --cidr 10.1.0.0/16 --node-lease-duration-seconds 40
    node a
    node b
    kubectl apply --server-side --filename "$home/crds" >/dev/null
    kubectl wait --for=condition=Ready node --all --timeout=60s >/dev/null
    kubectl wait --for=condition=Established crd --all --timeout=60s >/dev/null
    until_true 60 "namespaces get their accounts" kubectl get serviceaccount default
    trap - ERR
    echo "export KUBECONFIG=$KUBECONFIG PATH=$home/bin:\$PATH"
}

node() { # zone
    kubectl apply --filename - >/dev/null <<END
apiVersion: v1
kind: Node
metadata:
  name: node-$1
  annotations: {kwok.x-k8s.io/node: fake}
  labels: {kubernetes.io/hostname: node-$1, kubernetes.io/os: linux, topology.kubernetes.io/zone: $1}
status:
  capacity: {cpu: "64", memory: 256Gi, pods: "110", nvidia.com/gpu: "8"}
  allocatable: {cpu: "64", memory: 256Gi, pods: "110", nvidia.com/gpu: "8"}
END
}

begin() { # name, command
    local name=$1
    shift
    nohup "$@" >"$home/logs/$name.log" 2>&1 &
    echo $! >"$home/run/$name.pid"
}

until_true() { # seconds, what, command
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || { echo "control-plane.sh: waited in vain until $what" >&2; return 1; }
        sleep 0.2
    done
}

down() {
    local name pid
    for name in kwok scheduler controllers apiserver etcd; do
        pid=$(cat "$home/run/$name.pid" 2>/dev/null) || continue
        # The number may belong to somebody else by now.
        if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$(process_of "$name")" ]; then
            kill "$pid" && until_true 30 "$name has ended" not kill -0 "$pid"
        fi
        rm -f "$home/run/$name.pid"
    done
}

not() { ! "$@"; }

process_of() { # name: as the kernel knows its process, in 15 characters
    case $1 in
        apiserver) echo kube-apiserver ;;
        controllers) echo kube-controller ;;
        scheduler) echo kube-scheduler ;;
        *) echo "$1" ;;
    esac
}

case ${1:-} in
    build | up | down) "$1" ;;
    *) sed -n '2,10{s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
esac

{{/* How the process of a component serves HTTP: of (dict "root" $ "component" …), a mapping with port, scheme and token,
which says whether /metrics asks for one. */}}
{{- define "anomalyd.http" -}}
{{- $config := .root.Values.config -}}
{{- $http := dig "http" dict $config -}}
{{- $port := 9464 -}}
{{- if eq .component "retrainer" }}{{ $http = dig "retrain" "http" dict $config }}{{ $port = 9465 }}{{ end -}}
{{- if eq .component "notifier" }}{{ $http = dig "alertmanager" "http" dict $config }}{{ $port = 9466 }}{{ end -}}
port: {{ $http.port | default $port | int }}
scheme: {{ empty $http.tls_certfile | ternary "http" "https" }}
token: {{ not (empty $http.token_file) }}
{{- end }}

{{/* The components that run processes, by what is enabled. A list in JSON. */}}
{{- define "anomalyd.processes" -}}
{{- $processes := list "daemon" -}}
{{- if .Values.retrainer.enabled }}{{ $processes = append $processes "retrainer" }}{{ end -}}
{{- if .Values.notifier.enabled }}{{ $processes = append $processes "notifier" }}{{ end -}}
{{- $processes | toJson -}}
{{- end }}

{{/* The name of a component's objects: of (dict "root" $ "component" …). */}}
{{- define "anomalyd.name" -}}
{{- $name := include "anomalyd.fullname" .root -}}
{{- eq .component "daemon" | ternary $name (printf "%s-%s" $name .component) -}}
{{- end }}

{{/* A process' Service, for Prometheus and for the names of pods: of (dict "root" $ "component" …). */}}
{{- define "anomalyd.service" -}}
apiVersion: v1
kind: Service
metadata:
  {{- include "anomalyd.metadata" (merge (dict "name" (include "anomalyd.name" .)) .) | nindent 2 }}
spec:
  clusterIP: None
  # Metrics of a pod that is reading its state back are wanted most.
  publishNotReadyAddresses: true
  selector:
    {{- include "anomalyd.selector" . | nindent 4 }}
  ports:
    - {name: http, port: {{ (include "anomalyd.http" . | fromYaml).port }}, targetPort: http}
{{- end }}

{{/* Of the configuration that which a component acts on, so that it restarts for nothing else. */}}
{{- define "anomalyd.checksum" -}}
{{- $config := .root.Values.config -}}
{{- if eq .component "daemon" }}{{ $config = omit $config "retrain" "alertmanager" "topics" }}
{{- else if eq .component "retrainer" }}{{ $config = omit $config "alertmanager" "topics" }}
{{- else if eq .component "notifier" }}{{ $config = omit $config "retrain" "topics" }}
{{- end }}
{{- $config | toJson | sha256sum -}}
{{- end }}

{{/* Ports of addresses: of a list of host:port or URLs; of URLs without one, that of their scheme. A list in JSON. */}}
{{- define "anomalyd.ports" -}}
{{- $ports := list -}}
{{- range . -}}
  {{- $host := regexReplaceAll "^[a-z]+://([^@/]*@)?([^/?#]*).*$" . "${2}" -}}
  {{- $port := regexFind ":[0-9]+$" $host | trimPrefix ":" | int -}}
  {{- $ports = append $ports ($port | default (hasPrefix "https:" . | ternary 443 80)) -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end }}

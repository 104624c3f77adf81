{{/* The port that the process of a component listens on: of (dict "root" $ "component" …). */}}
{{- define "anomalyd.port" -}}
{{- $config := .root.Values.config -}}
{{- if eq .component "daemon" -}}{{ dig "http" "port" 9464 $config | int }}
{{- else if eq .component "retrainer" -}}{{ dig "retrain" "http" "port" 9465 $config | int }}
{{- else if eq .component "notifier" -}}{{ dig "alertmanager" "http" "port" 9466 $config | int }}
{{- end -}}
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

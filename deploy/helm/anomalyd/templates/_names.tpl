{{/* The beginning of all names. Short enough that the longest suffix and the hash of a StatefulSet's revision still fit a label. */}}
{{- define "anomalyd.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := default (contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name)) .Values.fullnameOverride -}}
{{- $full | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Labels that never change: of (dict "root" $ "component" "daemon"); without component: of all pods. */}}
{{- define "anomalyd.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{/* Labels of an object: the selector's, and those that do change. */}}
{{- define "anomalyd.labels" -}}
{{ include "anomalyd.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: anomalyd
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* metadata of an object: of (dict "root" $ "component" …, "name" …, "labels" …, "annotations" …). */}}
{{- define "anomalyd.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "anomalyd.labels" . | nindent 2 }}
  {{- with .extraLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* metadata.annotations of what the topics job needs. The job runs before the release's own objects are there, so it brings its own. They are made
once more when a release is deleted, and then deleted like all hooks that succeeded: what a failed job has left goes that way. */}}
{{- define "anomalyd.hook" -}}
helm.sh/hook: pre-install,pre-upgrade,post-delete
helm.sh/hook-weight: "-10"
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{- define "anomalyd.serviceAccountName" -}}
{{- .Values.serviceAccount.create | ternary (include "anomalyd.fullname" .) "default" | default .Values.serviceAccount.name -}}
{{- end }}

{{- define "anomalyd.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ with .Values.image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* `pod` with the component's own laid over it. */}}
{{- define "anomalyd.podValues" -}}
{{- $all := .root.Values.pod -}}
{{- $own := (index .root.Values .component).pod -}}
{{- $merged := mergeOverwrite (deepCopy $all) (deepCopy $own) -}}
{{- range list "tolerations" "topologySpreadConstraints" "extraEnv" "extraEnvFrom" "extraVolumes" "extraVolumeMounts" "extraContainers" "extraInitContainers" -}}
  {{- $_ := set $merged . (concat (get $all .) (get $own . | default list) | default list) -}}
{{- end -}}
{{- toYaml $merged -}}
{{- end }}

{{/* The template of a component's pods: metadata and spec, of a dict with

  root, component
  command      after `anomalyd`
  env, volumes, mounts, initContainers   of this component alone, lists
  limits       beside those of its resources, a mapping
  probes       startup, readiness and liveness ask its HTTP server
  restartPolicy, config (the ConfigMap), serviceAccount
*/}}
{{- define "anomalyd.podTemplate" -}}
{{- $root := .root -}}
{{- $own := index $root.Values .component -}}
{{- $pod := include "anomalyd.podValues" . | fromYaml -}}
{{- $selector := dict "matchLabels" (include "anomalyd.selector" . | fromYaml) -}}
{{- $resources := deepCopy $own.resources -}}
{{- with .limits }}{{ $resources = mergeOverwrite $resources (dict "limits" .) }}{{ end -}}
metadata:
  annotations:
    checksum/config: {{ include "anomalyd.checksum" . }}
    {{- with $pod.annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  labels:
    {{- /* Nothing that changes with the chart alone: that would restart pods. */}}
    {{- include "anomalyd.selector" . | nindent 4 }}
    {{- with merge (deepCopy $pod.labels) $root.Values.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ .serviceAccount }}
  automountServiceAccountToken: false
  # The environment belongs to settings.
  enableServiceLinks: false
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .restartPolicy }}
  restartPolicy: {{ . }}
  {{- end }}
  {{- with $own.terminationGracePeriodSeconds }}
  terminationGracePeriodSeconds: {{ . }}
  {{- end }}
  {{- with $pod.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $pod.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  securityContext:
    {{- toYaml $pod.securityContext | nindent 4 }}
  {{- with concat $pod.extraInitContainers (.initContainers | default list) }}
  initContainers:
    {{- tpl (toYaml .) $root | nindent 4 }}
  {{- end }}
  containers:
    - name: anomalyd
      image: {{ include "anomalyd.image" $root | quote }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args: {{ toJson .command }}
      {{- with concat (.env | default list) $pod.extraEnv }}
      env:
        {{- tpl (toYaml .) $root | nindent 8 }}
      {{- end }}
      {{- with $pod.extraEnvFrom }}
      envFrom:
        {{- tpl (toYaml .) $root | nindent 8 }}
      {{- end }}
      {{- if .probes }}
      {{- $http := include "anomalyd.http" . | fromYaml }}
      {{- $scheme := upper $http.scheme }}
      ports:
        - name: http
          containerPort: {{ $http.port }}
      # None of them kills a pod because brokers are away or state is being read back: /healthz answers as long as the process turns, from before
      # kernels are loaded on. /readyz waits for state, and a rollout for /readyz.
      startupProbe:
        httpGet: {path: /healthz, port: http, scheme: {{ $scheme }}}
        periodSeconds: 2
        timeoutSeconds: 5
        failureThreshold: 150
      livenessProbe:
        httpGet: {path: /healthz, port: http, scheme: {{ $scheme }}}
        periodSeconds: 10
        timeoutSeconds: 10
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: /readyz, port: http, scheme: {{ $scheme }}}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 3
      {{- end }}
      {{- with $resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- toYaml $pod.containerSecurityContext | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/anomalyd, readOnly: true}
        - {name: tmp, mountPath: /tmp}
        {{- range $name, $secret := $root.Values.secrets }}
        - {name: secret-{{ $name }}, mountPath: /etc/anomalyd-secrets/{{ $name }}, readOnly: true}
        {{- end }}
        {{- with concat (.mounts | default list) $pod.extraVolumeMounts }}
        {{- tpl (toYaml .) $root | nindent 8 }}
        {{- end }}
    {{- with $pod.extraContainers }}
    {{- tpl (toYaml .) $root | nindent 4 }}
    {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ .config }}
    - name: tmp
      emptyDir: {sizeLimit: 256Mi}
    {{- range $name, $secret := $root.Values.secrets }}
    - name: secret-{{ $name }}
      secret:
        secretName: {{ tpl $secret.secretName $root }}
        defaultMode: 0440
        {{- with $secret.items }}
        items:
          {{- toYaml . | nindent 10 }}
        {{- end }}
    {{- end }}
    {{- with concat (.volumes | default list) $pod.extraVolumes }}
    {{- tpl (toYaml .) $root | nindent 4 }}
    {{- end }}
  {{- with $pod.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $pod.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $pod.affinity }}
  affinity:
    {{- tpl (toYaml .) $root | nindent 4 }}
  {{- end }}
  {{- if .probes }}
  topologySpreadConstraints:
    {{- range $pod.topologySpreadConstraints | default (list
          (dict "topologyKey" "kubernetes.io/hostname" "maxSkew" 1 "whenUnsatisfiable" "ScheduleAnyway")
          (dict "topologyKey" "topology.kubernetes.io/zone" "maxSkew" 1 "whenUnsatisfiable" "ScheduleAnyway")) }}
    - {{ merge (deepCopy .) (hasKey . "labelSelector" | ternary dict (dict "labelSelector" $selector)) | toYaml | nindent 6 | trim }}
    {{- end }}
  {{- end }}
{{- end }}

{{/* What a component needs that compiles: the image's machine code in a folder that can be written, for models of other shapes than it knows. As
the image has it the folder is read-only; an empty one would have every start compile all anew. */}}
{{- define "anomalyd.kernels" -}}
{{- $pod := include "anomalyd.podValues" . | fromYaml -}}
env:
  - {name: NUMBA_CACHE_DIR, value: /var/cache/anomalyd}
mounts:
  - {name: kernels, mountPath: /var/cache/anomalyd}
volumes:
  - name: kernels
    emptyDir: {sizeLimit: {{ .root.Values.daemon.kernelCacheSize }}}
initContainers:
  - name: kernels
    image: {{ include "anomalyd.image" .root | quote }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    # With --update, what a container that was started again has compiled meanwhile stays.
    command: [cp, --recursive, --update, /opt/anomalyd/numba-cache/., /var/cache/anomalyd]
    resources:
      requests: {cpu: 50m, memory: 64Mi}
      limits: {memory: 256Mi}
    securityContext:
      {{- toYaml $pod.containerSecurityContext | nindent 6 }}
    volumeMounts:
      - {name: kernels, mountPath: /var/cache/anomalyd}
{{- end }}

{{/* Pod template of a Ray node. Takes (dict "root" $ "group" values "component" "head" or "worker").

Everything here is part of the cluster: a change of it is a new cluster (upgradeStrategy). So nothing in it may change with
the chart's version alone. */}}
{{- define "nightjar.rayPod" -}}
{{- $values := .root.Values -}}
metadata:
  labels:
    {{- include "nightjar.selectorLabels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "nightjar.scheduling" . | trim | nindent 2 }}
  {{- with $values.serviceAccountName }}
  serviceAccountName: {{ . | quote }}
  {{- end }}
  {{- if or (eq .component "worker") (not $values.autoscaler.enabled) }}
  automountServiceAccountToken: false
  {{- end }}
  # A release called vllm would otherwise set VLLM_PORT, which vLLM reads.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ int64 $values.terminationGracePeriodSeconds }}
  containers:
  - name: ray-{{ .component }}
    image: {{ include "nightjar.image" (dict "root" .root "image" $values.image) }}
    imagePullPolicy: {{ $values.image.pullPolicy }}
    ports:
    {{- include "nightjar.rayPorts" . | nindent 4 }}
    env:
    {{- include "nightjar.rayEnvironment" .root | nindent 4 }}
    {{- if eq .component "worker" }}
    {{- with include "nightjar.drainEnvironment" .root }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- else }}
    {{- with include "nightjar.journalEnvironment" .root | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- end }}
    {{- with $values.envFrom }}
    envFrom:
    {{- toYaml . | nindent 4 }}
    {{- end }}
    resources:
      {{- include "nightjar.rayResources" . | nindent 6 }}
    {{- range $probe := list "livenessProbe" "readinessProbe" "startupProbe" }}
    {{- with get $.group $probe }}
    {{ $probe }}:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- end }}
    {{- with $values.containerSecurityContext }}
    securityContext:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    volumeMounts:
    {{- include "nightjar.scratchMounts" . | nindent 4 }}
    {{- range include "nightjar.tokens" $values.policy | fromYamlArray }}
    - {name: {{ .name }}, mountPath: /etc/nightjar/{{ .name }}, readOnly: true}
    {{- end }}
    {{- with $values.modelStore }}
    {{- if .existingClaim }}
    - name: models
      mountPath: /models
      readOnly: {{ .readOnly }}
      {{- with .subPath }}
      subPath: {{ . | quote }}
      {{- end }}
    {{- end }}
    {{- end }}
    {{- if and (eq .component "head") $values.policy.journal.existingClaim }}
    - {name: journal, mountPath: /nightjar-journal}
    {{- end }}
    {{- with $values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
  {{- include "nightjar.scratchVolume" (dict "name" "tmp" "size" $values.scratch.tmpSizeLimit) | nindent 2 }}
  {{- include "nightjar.scratchVolume" (dict "name" "home" "size" $values.scratch.homeSizeLimit) | nindent 2 }}
  {{- range include "nightjar.tokens" $values.policy | fromYamlArray }}
  - name: {{ .name }}
    secret:
      secretName: {{ .secret | quote }}
      items: [{key: {{ .key | quote }}, path: token}]
      defaultMode: 0440
  {{- end }}
  {{- with $values.modelStore.existingClaim }}
  - name: models
    persistentVolumeClaim:
      claimName: {{ . | quote }}
      readOnly: {{ $values.modelStore.readOnly }}
  {{- end }}
  {{- if eq .component "head" }}
  {{- with $values.policy.journal.existingClaim }}
  - name: journal
    persistentVolumeClaim: {claimName: {{ . | quote }}}
  {{- end }}
  {{- end }}
  {{- with $values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* The same with what the values say on top: fields of Ray's container, and of the pod. Containers, init containers, volumes and
tolerations of podSpecOverrides stand beside the chart's own; every other list takes their place. */}}
{{- define "nightjar.rayPodWithOverrides" -}}
{{- $pod := include "nightjar.rayPod" . -}}
{{- $container := .group.containerOverrides | default dict -}}
{{- $own := .group.podSpecOverrides | default dict -}}
{{- if or $container $own -}}
{{- $pod = fromYaml $pod -}}
{{- $ray := mergeOverwrite (first $pod.spec.containers) (deepCopy $container) -}}
{{- $spec := set $pod.spec "containers" (list $ray) -}}
{{- $beside := dict -}}
{{- range $name := list "containers" "initContainers" "volumes" "tolerations" -}}
{{- if hasKey $own $name -}}
{{- $_ := set $beside $name (concat (get $spec $name | default list) (get $own $name)) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $pod "spec" (mergeOverwrite $spec (deepCopy $own) $beside) -}}
{{- $pod = toYaml $pod -}}
{{- end -}}
{{- $pod -}}
{{- end -}}

{{/* The group's resources, with the scratch space that the pod asks of its node. Takes what nightjar.rayPod takes. */}}
{{- define "nightjar.rayResources" -}}
{{- $own := dict -}}
{{- with .root.Values.scratch.request -}}
{{- $own = dict "requests" (dict "ephemeral-storage" .) -}}
{{- end -}}
{{- merge (dict) (.group.resources | default dict) $own | toYaml -}}
{{- end -}}

{{- define "nightjar.rayPorts" -}}
{{- if eq .component "head" -}}
- {containerPort: 6379, name: gcs-server}
- {containerPort: 8265, name: dashboard}
- {containerPort: 10001, name: client}
- {containerPort: 44217, name: as-metrics}
- {containerPort: 44227, name: dash-metrics}
{{ end -}}
- {containerPort: 8000, name: serve}
- {containerPort: 8080, name: metrics}
{{- end -}}

{{/* The tokens that are mounted: of who writes to the policy's API, who reads it, and servers that report over HTTP. Takes values.policy. */}}
{{- define "nightjar.tokens" -}}
{{- with .existingTokenSecret }}
- {name: api-token, variable: NIGHTJAR_API_TOKEN_FILE, secret: {{ . | quote }}, key: {{ $.tokenSecretKey | quote }}}
{{- end }}
{{- with .existingReadTokenSecret }}
- {name: api-read-token, variable: NIGHTJAR_API_READ_TOKEN_FILE, secret: {{ . | quote }}, key: {{ $.readTokenSecretKey | quote }}}
{{- end }}
{{- with .existingExchangeTokenSecret }}
- {name: exchange-token, variable: NIGHTJAR_EXCHANGE_TOKEN_FILE, secret: {{ . | quote }}, key: {{ $.exchangeTokenSecretKey | quote }}}
{{- end }}
{{- end }}

{{/* Whether `env` names a variable, which then is the user's: [root, name]; empty where it does not. */}}
{{- define "nightjar.namesVariable" -}}
{{- range (index . 0).Values.env }}{{ if eq .name (index $ 1) }}true{{ end }}{{ end -}}
{{- end -}}

{{- define "nightjar.rayEnvironment" -}}
- {name: HOME, value: /home/nightjar}
{{- with .Values.huggingFace }}
{{- if .existingSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ .existingSecret | quote }}, key: {{ .secretKey | quote }}}
{{- end }}
{{- if .offline }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
{{- end }}
{{- with .Values.modelStore }}
{{- if .existingClaim }}
- {name: NIGHTJAR_MODELS, value: /models}
{{- if not .readOnly }}
- {name: HF_HOME, value: /models/huggingface}
{{- end }}
{{- end }}
{{- end }}
{{- range include "nightjar.tokens" .Values.policy | fromYamlArray }}
- {name: {{ .variable }}, value: /etc/nightjar/{{ .name }}/token}
{{- end }}
- {name: NIGHTJAR_API_READ_ACCESS, value: {{ .Values.policy.readAccess }}}
{{- if not .Values.usageStatistics }}
{{- range $name, $value := dict "RAY_USAGE_STATS_ENABLED" "0" "VLLM_NO_USAGE_STATS" "1" }}
{{- if not (include "nightjar.namesVariable" (list $ $name)) }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}
{{- end }}
{{- if and (include "nightjar.hasGpus" .) (not (include "nightjar.namesVariable" (list . "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY"))) }}
# Serve's own spreading leaves one GPU free in many pods and no room for a replica that needs two.
- {name: RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY, value: "1"}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Where the policy keeps its journal and how much of it; nothing for the defaults, which begin no new cluster. Two clusters of one
release live beside each other in an upgrade, so each has a folder: KubeRay labels its pods with ray.io/cluster. */}}
{{- define "nightjar.journalEnvironment" -}}
{{- with .Values.policy.journal -}}
{{- if ne (int .sizeMiB) 64 }}
- {name: NIGHTJAR_JOURNAL_MIB, value: {{ int64 .sizeMiB | quote }}}
{{- end }}
{{- if .existingClaim }}
- name: NIGHTJAR_RAY_CLUSTER
  valueFrom:
    fieldRef: {fieldPath: "metadata.labels['ray.io/cluster']"}
- {name: NIGHTJAR_JOURNAL_DIR, value: /nightjar-journal/$(NIGHTJAR_RAY_CLUSTER)}
{{- end }}
{{- end -}}
{{- end -}}

{{/* Seconds of a worker's end that are for its replicas: the last ten of its grace are for Ray's own processes. */}}
{{- define "nightjar.drainSeconds" -}}
{{- max 0 (sub (int64 .Values.terminationGracePeriodSeconds) 10) -}}
{{- end -}}

{{/* A worker that is told to end lets Serve start its replicas elsewhere and these finish their requests. Ray's own 30 s are less than
a replica's graceful_shutdown_timeout_s, and then Serve stops it at once, before another has started. The head has no replica. */}}
{{- define "nightjar.drainEnvironment" -}}
{{- if not (include "nightjar.namesVariable" (list . "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")) -}}
- {name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, value: {{ include "nightjar.drainSeconds" . | quote }}}
{{- end }}
{{- end -}}

{{/* Where a container with a read-only root writes. KubeRay adds /dev/shm, and /tmp/ray where the autoscaler shares Ray's logs. */}}
{{- define "nightjar.scratchMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: home, mountPath: /home/nightjar}
{{- end -}}

{{- define "nightjar.scratchVolume" -}}
- name: {{ .name }}
  emptyDir:
    {{- if .size }}
    sizeLimit: {{ .size }}
    {{- else }} {}
    {{- end }}
{{- end -}}

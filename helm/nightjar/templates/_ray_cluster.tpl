{{/* The RayCluster that the RayService makes. */}}
{{- define "nightjar.rayCluster" -}}
rayVersion: {{ .Values.rayVersion | quote }}
enableInTreeAutoscaling: {{ .Values.autoscaler.enabled }}
{{- if .Values.autoscaler.enabled }}
autoscalerOptions:
  version: v2
  idleTimeoutSeconds: {{ int64 .Values.autoscaler.idleTimeoutSeconds }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  env:
  - {name: HOME, value: /home/nightjar}
  resources:
    {{- toYaml .Values.autoscaler.resources | nindent 4 }}
  {{- with .Values.containerSecurityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
  {{- include "nightjar.scratchMounts" . | nindent 2 }}
{{- end }}
authOptions:
  mode: {{ .Values.rayAuth.mode }}
  {{- with .Values.rayAuth.existingSecret }}
  secretName: {{ . | quote }}
  {{- end }}
{{- with .Values.gcsFaultTolerance }}
{{- if .backend }}
gcsFaultToleranceOptions:
  {{- with .externalStorageNamespace }}
  externalStorageNamespace: {{ . | quote }}
  {{- end }}
  {{- if eq .backend "redis" }}
  redisAddress: {{ .redis.address | quote }}
  {{- with .redis.username }}
  redisUsername: {value: {{ . | quote }}}
  {{- end }}
  {{- if .redis.existingSecret }}
  redisPassword:
    valueFrom:
      secretKeyRef: {name: {{ .redis.existingSecret | quote }}, key: {{ .redis.secretKey | quote }}}
  {{- end }}
  {{- else }}
  backend: {{ .backend }}
  storage:
    {{- toYaml .storage | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}
headGroupSpec:
  rayStartParams:
    {{- merge (dict) (.Values.head.rayStartParams | default dict) (dict "num-cpus" "0" "num-gpus" "0" "dashboard-host" "0.0.0.0") | toYaml | nindent 4 }}
  template:
    {{- include "nightjar.rayPodWithOverrides" (dict "root" . "group" .Values.head "component" "head") | nindent 4 }}
workerGroupSpecs:
{{- range .Values.workerGroups }}
- {{ include "nightjar.workerGroupWithOverrides" (dict "root" $ "group" .) | nindent 2 | trim }}
{{- end }}
{{- end -}}

{{/* The same with the fields of rayClusterOverrides on top; as written where there are none. */}}
{{- define "nightjar.rayClusterWithOverrides" -}}
{{- $cluster := include "nightjar.rayCluster" . -}}
{{- with .Values.rayClusterOverrides -}}
{{- $cluster = mergeOverwrite (fromYaml $cluster) (deepCopy .) | toYaml -}}
{{- end -}}
{{- $cluster -}}
{{- end -}}

{{/* The spec of the RayService. */}}
{{- define "nightjar.rayServiceSpec" -}}
# A change in here alone is deployed in place; it replaces the replicas of a model whose args or runtime_env changed, a share at a time.
serveConfigV2: |
  {{- include "nightjar.serveConfig" . | nindent 2 }}
upgradeStrategy:
  type: {{ .Values.upgradeStrategy.type }}
  {{- with .Values.upgradeStrategy.clusterUpgradeOptions }}
  clusterUpgradeOptions:
    {{- toYaml . | nindent 4 }}
  {{- end }}
rayClusterDeletionDelaySeconds: {{ int64 .Values.rayClusterDeletionDelaySeconds }}
# The head serves no model: requests go to the workers' proxies.
excludeHeadPodFromServeSvc: true
rayClusterConfig:
  {{- include "nightjar.rayClusterWithOverrides" . | nindent 2 }}
{{- end -}}

{{/* The same with the fields of rayServiceOverrides on top; as written where there are none. */}}
{{- define "nightjar.rayServiceWithOverrides" -}}
{{- $spec := include "nightjar.rayServiceSpec" . -}}
{{- with .Values.rayServiceOverrides -}}
{{- $spec = mergeOverwrite (fromYaml $spec) (deepCopy .) | toYaml -}}
{{- end -}}
{{- $spec -}}
{{- end -}}

{{- define "nightjar.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 47 | trimSuffix "-" -}}
{{- end -}}

{{/* KubeRay takes RayService names of up to 47 characters: it appends to them. */}}
{{- define "nightjar.fullname" -}}
{{- $name := include "nightjar.name" . -}}
{{- $long := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- .Values.fullnameOverride | default $long | trunc 47 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels of the chart's objects. Ray's pods have nightjar.podLabels: the version in here would make every new chart a new cluster. */}}
{{- define "nightjar.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "nightjar.name" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "nightjar.selectorLabels" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* By these the chart finds its pods. app.kubernetes.io/name is not among them: KubeRay sets and selects that one on Ray's pods. */}}
{{- define "nightjar.selectorLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/part-of: nightjar
{{- end -}}

{{/* A label selector of this release's Ray pods. */}}
{{- define "nightjar.raySelector" -}}
matchLabels:
  {{- include "nightjar.selectorLabels" . | nindent 2 }}
matchExpressions:
- {key: app.kubernetes.io/component, operator: In, values: [head, worker]}
{{- end -}}

{{- define "nightjar.metadata" -}}
labels:
  {{- include "nightjar.labels" . | nindent 2 }}
{{- with .Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The reference of an image block: by digest if there is one. Takes (dict "root" $ "image" block). */}}
{{- define "nightjar.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest | quote -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (.image.tag | default .root.Chart.AppVersion) | quote -}}
{{- end -}}
{{- end -}}

{{/* KubeRay names the service so; with the incremental upgrade the Gateway's implementation chooses the name. */}}
{{- define "nightjar.serviceUrl" -}}
{{- .Values.upgradeStrategy.serviceUrl | default "" | trimSuffix "/" | default (printf "http://%s-serve-svc:8000" (include "nightjar.fullname" .)) -}}
{{- end -}}

{{/* Where the first model answers; the service itself where the chart knows no model. */}}
{{- define "nightjar.firstModelUrl" -}}
{{- $model := first .Values.models | default dict -}}
{{- printf "%s%s" (include "nightjar.serviceUrl" .) ($model.routePrefix | default "" | trimSuffix "/") -}}
{{- end -}}

{{/* Arguments of files/check_service.py: what this release must answer. Takes (dict "root" $ "timeout" seconds). */}}
{{- define "nightjar.checkArguments" -}}
- --timeout-s={{ int64 .timeout }}
- --service={{ include "nightjar.serviceUrl" .root }}
{{- range .root.Values.models }}
- {{ printf "--model=%s=%s" (.routePrefix | default "/") (.modelId | default .name) | quote }}
{{- end }}
{{- if and .root.Values.models .root.Values.policy.enabled }}
- --answers=/nightjar/health
{{- end }}
{{- end -}}

{{/* A label selector of the pods of the head, or of a worker group (by KubeRay's own label). A topologySpreadConstraint without one
matches no pod and spreads nothing. Takes (dict "root" $ "group" values "component" "head" or "worker"). */}}
{{- define "nightjar.likePods" -}}
matchLabels:
  {{- include "nightjar.selectorLabels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
  {{- with .group.groupName }}
  ray.io/group: {{ . | quote }}
  {{- end }}
{{- end -}}

{{/* Pod fields that Ray's pods and the tools share. Takes (dict "root" $ "group" values "component" name). */}}
{{- define "nightjar.scheduling" -}}
{{- with .group.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  {{- $selector := hasKey . "labelSelector" | ternary (dict) (dict "labelSelector" (include "nightjar.likePods" $ | fromYaml)) }}
  - {{ merge (dict) . $selector | toYaml | nindent 4 | trim }}
  {{- end }}
{{- end }}
{{- with .group.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A pod of the load test, Locust's master or one of its workers. Takes (dict "root" $ "component" "name" "run"). */}}
{{- define "nightjar.loadPod" -}}
{{- $test := .root.Values.loadTest -}}
metadata:
  labels:
    {{- include "nightjar.selectorLabels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
    nightjar-load-run: {{ .run | quote }}
spec:
  {{- include "nightjar.scheduling" (dict "root" .root "group" $test) | trim | nindent 2 }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  restartPolicy: Never
  {{- if not $test.host }}
  initContainers:
  - name: wait-for-models
    {{- include "nightjar.checkContainer" (dict "root" .root "timeout" $test.waitForModelsS) | nindent 4 }}
    resources:
      {{- toYaml $test.resources | nindent 6 }}
  {{- end }}
  containers:
  - name: locust
    image: {{ include "nightjar.image" (dict "root" .root "image" .root.Values.toolsImage) }}
    imagePullPolicy: {{ .root.Values.toolsImage.pullPolicy }}
    command: [locust]
    args:
    - --locustfile=/opt/nightjar/locustfile.py
    - --headless
    - {{ printf "--host=%s" ($test.host | default (include "nightjar.firstModelUrl" .root)) | quote }}
    {{- with $test.model }}
    - {{ printf "--model=%s" . | quote }}
    {{- end }}
    - {{ printf "--regime=%s" $test.regime | quote }}
    - --seed={{ int64 $test.seed }}
    - --max-tokens={{ int64 $test.maxTokens }}
    {{- if eq .component "load-master" }}
    - --only-summary
    - --master
    - --expect-workers={{ int64 $test.workers }}
    {{- if $test.resultsClaim }}
    - --csv=/results/{{ .name }}
    - --html=/results/{{ .name }}.html
    {{- end }}
    {{- else }}
    - --worker
    - --master-host={{ .name }}
    {{- end }}
    env:
    - {name: HOME, value: /home/nightjar}
    {{- with include "nightjar.apiKey" .root }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- if eq .component "load-master" }}
    ports:
    - {containerPort: 5557, name: locust}
    {{- end }}
    resources:
      {{- toYaml $test.resources | nindent 6 }}
    {{- with .root.Values.containerSecurityContext }}
    securityContext:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    volumeMounts:
    {{- include "nightjar.scratchMounts" . | nindent 4 }}
    {{- if and $test.resultsClaim (eq .component "load-master") }}
    - {name: results, mountPath: /results}
    {{- end }}
  volumes:
  {{- include "nightjar.scratchVolume" (dict "name" "tmp" "size" "") | nindent 2 }}
  {{- include "nightjar.scratchVolume" (dict "name" "home" "size" "") | nindent 2 }}
  {{- if and $test.resultsClaim (eq .component "load-master") }}
  - name: results
    persistentVolumeClaim: {claimName: {{ $test.resultsClaim | quote }}}
  {{- end }}
{{- end -}}

{{/* A container that ends well once the release serves. Takes (dict "root" $ "timeout" seconds). */}}
{{- define "nightjar.checkContainer" -}}
image: {{ include "nightjar.image" (dict "root" .root "image" .root.Values.toolsImage) }}
imagePullPolicy: {{ .root.Values.toolsImage.pullPolicy }}
command: [python, -c]
args:
- |
  {{- .root.Files.Get "files/check_service.py" | nindent 2 }}
{{ include "nightjar.checkArguments" . }}
{{- with include "nightjar.apiKey" .root }}
env:
{{ . }}
{{- end }}
{{- with .root.Values.containerSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The key that the server asks for, as one environment variable; empty where none is named. Takes the root. */}}
{{- define "nightjar.apiKey" -}}
{{- with .Values.loadTest -}}
{{- if .existingSecret -}}
- name: OPENAI_API_KEY
  valueFrom:
    secretKeyRef: {name: {{ .existingSecret | quote }}, key: {{ .secretKey | quote }}}
{{- end -}}
{{- end -}}
{{- end -}}

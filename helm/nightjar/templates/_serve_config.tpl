{{/* What Ray Serve deploys: the user's own config as it is, or one application per model and the policy's. */}}
{{- define "nightjar.serveConfig" -}}
{{- if .Values.serveConfigV2 -}}
{{ .Values.serveConfigV2 | trim }}
{{- else -}}
http_options: {host: 0.0.0.0, port: 8000}
applications:
{{- range .Values.models }}
- name: {{ .name | quote }}
  import_path: nightjar.deployments.app:build
  route_prefix: {{ .routePrefix | default "/" | quote }}
  {{- with .runtimeEnv }}
  runtime_env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  args:
    llm_configs:
    - model_loading_config:
        model_id: {{ .modelId | default .name | quote }}
        {{- with .modelSource }}
        model_source: {{ . | quote }}
        {{- end }}
      {{- with .acceleratorType }}
      accelerator_type: {{ . | quote }}
      {{- end }}
      {{- with .engineKwargs }}
      engine_kwargs:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .deploymentConfig }}
      deployment_config:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if hasKey . "hungAfterS" }}
      hung_after_s: {{ .hungAfterS }}
      {{- end }}
      {{- with .draftOffload }}
      draft_offload: {{ . }}
      {{- end }}
  {{- if .forceOff }}
  deployments:
  - name: LLM
    user_config: {mode: "off"}
  {{- end }}
{{- end }}
{{- if .Values.policy.enabled }}
- name: nightjar
  import_path: nightjar.cluster.policy_app:build
  route_prefix: /nightjar
  deployments:
  - name: Policy
    user_config:
      {{- toYaml .Values.policy.settings | nindent 6 }}
{{- end }}
{{- end -}}
{{- end -}}

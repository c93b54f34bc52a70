{{/* What Ray Serve deploys: the user's own config as it is, or one application per model and the policy's. */}}
{{- define "nightjar.serveConfig" -}}
{{- if .Values.serveConfigV2 -}}
{{ .Values.serveConfigV2 | trim }}
{{- else -}}
http_options: {host: 0.0.0.0, port: 8000}
applications:
{{- range .Values.models }}
{{- $config := include "nightjar.deploymentConfig" . | fromYaml }}
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
      {{- with $config.inArgs }}
      deployment_config:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if hasKey . "hungAfterS" }}
      hung_after_s: {{ .hungAfterS }}
      {{- end }}
      {{- if .requireSteering }}
      require_steering: true
      {{- end }}
      {{- with .graphTiers }}
      graph_tiers: {{ toJson . }}
      {{- end }}
      {{- with .headLogSteps }}
      head_log_steps: {{ . }}
      {{- end }}
      {{- with .without }}
      without: {{ toJson . }}
      {{- end }}
      {{- with .extraRoutes }}
      extra_routes: {{ toJson . }}
      {{- end }}
      {{- with .draftOffload }}
      draft_offload: {{ . }}
      {{- end }}
  {{- if or $config.besideArgs .forceOff }}
  deployments:
  - name: LLM
    {{- with $config.besideArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- if .forceOff }}
    user_config: {mode: "off"}
    {{- end }}
  {{- end }}
{{- end }}
{{- if .Values.policy.enabled }}
- name: nightjar
  import_path: nightjar.cluster.policy_app:build
  route_prefix: /nightjar
  deployments:
  - name: Policy
    user_config:
      {{- include "nightjar.policySettings" . | nindent 6 }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* The policy's settings. A place that they name to seed from, also an empty one, is the user's. Otherwise it is the RayService's own
service, where the cluster before answers until this one takes over: not where nobody may read there, and not with the incremental
upgrade, whose services are each cluster's own and change their names. */}}
{{- define "nightjar.policySettings" -}}
{{- $settings := deepCopy (.Values.policy.settings | default dict) -}}
{{- if and .Values.policy.seedFromService (not (hasKey $settings "seed_from")) (not (include "nightjar.cannotSeed" .)) -}}
{{- $_ := set $settings "seed_from" (printf "%s/nightjar/learned" (include "nightjar.serviceUrl" .)) -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}

{{/* Why the policy cannot seed itself from the release's own service; empty where it can. */}}
{{- define "nightjar.cannotSeed" -}}
{{- $token := or .Values.policy.existingReadTokenSecret (include "nightjar.namesVariable" (list . "NIGHTJAR_API_READ_TOKEN"))
      (include "nightjar.namesVariable" (list . "NIGHTJAR_API_READ_TOKEN_FILE")) -}}
{{- if eq .Values.upgradeStrategy.type "NewClusterWithIncrementalUpgrade" -}}
an incremental upgrade has no service of one name
{{- else if not (or $token (eq .Values.policy.readAccess "open")) -}}
policy.existingReadTokenSecret names no token to read with
{{- end -}}
{{- end -}}

{{/* A model's deploymentConfig in two parts. What Serve can change without replacing a replica stands beside `args`: in `args` any
change replaces all of them. The rest replaces them wherever it stands, and Nightjar's builder adds to it (GPUs, runtime_env).
A replica that goes has 120 s for the requests that it answers, where Serve would cut them off after 20. */}}
{{- define "nightjar.deploymentConfig" -}}
{{- $live := list "num_replicas" "autoscaling_config" "max_ongoing_requests" "max_queued_requests" "backpressure_config"
      "health_check_period_s" "health_check_timeout_s" "graceful_shutdown_wait_loop_s" "graceful_shutdown_timeout_s"
      "rolling_update_percentage" "max_surge_percent" -}}
{{- $parts := dict "inArgs" dict "besideArgs" (dict "graceful_shutdown_timeout_s" 120) -}}
{{- range $option, $value := .deploymentConfig -}}
  {{- $_ := set (get $parts (has $option $live | ternary "besideArgs" "inArgs")) $option $value -}}
{{- end -}}
{{- toYaml $parts -}}
{{- end -}}

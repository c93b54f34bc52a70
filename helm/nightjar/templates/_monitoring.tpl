{{/*
Rules and dashboards of this release alone. The files below files/ hold for any release: every selector in them has the matcher
job=~".*" (cluster/dashboards/promql.py, ANY_RELEASE), in whose place this release is put, so that two releases in one Prometheus
and one Grafana have nothing twice.
*/}}
{{- define "nightjar.releaseMatcher" -}}
{{- printf "namespace=%q, job=%q" .Release.Namespace (.Values.monitoring.job | default .Release.Name) -}}
{{- end -}}

{{/*
The rule groups of the chart's files, as YAML with the one key `groups`. Lines that know a release by its policy's application go where
this chart does not name it: all that has its namespace and job is this release's.
*/}}
{{- define "nightjar.ruleGroups" -}}
{{- $rule := .Values.monitoring.prometheusRule -}}
{{- $runbook := printf "%s#" (default "docs/runbook.md" $rule.runbookUrl) -}}
{{- $alerts := $rule.alerts | default dict -}}
{{- $groups := list -}}
{{- $names := list -}}
{{- range $path, $_ := .Files.Glob "files/rules/*.yaml" -}}
  {{- $text := $.Files.Get $path | replace "docs/runbook.md#" $runbook | replace `job=~".*"` (include "nightjar.releaseMatcher" $) -}}
  {{- if not (and $.Values.models $.Values.policy.enabled) -}}
    {{- $text = regexReplaceAll "(?m)^.* # known by its policy\n" $text "" -}}
  {{- end -}}
  {{- range $group := (fromYaml $text).groups -}}
    {{- $rules := list -}}
    {{- range $group.rules -}}
      {{- $names = append $names (.alert | default "") -}}
      {{- $wanted := index $alerts (.alert | default "") | default dict -}}
      {{- if ne (toString $wanted.enabled) "false" -}}
        {{- $rules = append $rules (include "nightjar.alert" (dict "rule" . "wanted" $wanted) | fromYaml) -}}
      {{- end -}}
    {{- end -}}
    {{- if $rules -}}
      {{- $groups = append $groups (set $group "rules" $rules) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- range $name, $_ := $alerts -}}
  {{- if not (has $name $names) -}}
    {{- fail (printf "monitoring.prometheusRule.alerts: there is no alert %s; there are %s" $name (without $names "" | join ", ")) -}}
  {{- end -}}
{{- end -}}
{{- toYaml (dict "groups" $groups) -}}
{{- end -}}

{{/* A rule with what an operator wants of it. Takes (dict "rule" rule "wanted" its entry of monitoring.prometheusRule.alerts). */}}
{{- define "nightjar.alert" -}}
{{- $rule := .rule -}}
{{- with .wanted.for -}}
  {{- $rule = set $rule "for" . -}}
{{- end -}}
{{- with .wanted.severity -}}
  {{- $rule = set $rule "labels" (dict "severity" .) -}}
{{- end -}}
{{- if hasKey .wanted "threshold" -}}
  {{- $marked := `[0-9.]+ # threshold` -}}
  {{- if not (regexMatch $marked $rule.expr) -}}
    {{- fail (printf "monitoring.prometheusRule.alerts.%s.threshold: %v; this alert has no number, only enabled, for and severity" $rule.alert .wanted.threshold) -}}
  {{- end -}}
  {{- $rule = set $rule "expr" (regexReplaceAll $marked $rule.expr (printf "%v # threshold" .wanted.threshold)) -}}
{{- end -}}
{{- toYaml $rule -}}
{{- end -}}

{{/* A dashboard as JSON text, with a uid and a title of this release's. Takes (dict "root" $ "text" the file's). */}}
{{- define "nightjar.dashboard" -}}
{{- $release := .root.Release -}}
{{- $matcher := include "nightjar.releaseMatcher" .root | replace `"` `\"` -}}
{{- $mark := printf "%s/%s" $release.Namespace (include "nightjar.fullname" .root) | sha256sum | trunc 8 -}}
{{- $uid := printf `"uid": "nightjar-${1}-%s"` $mark -}}
{{- $title := printf `"title": "Nightjar: ${1} (%s/%s)"` $release.Namespace $release.Name -}}
{{- $text := .text | replace `job=~\".*\"` $matcher -}}
{{- regexReplaceAll `"title": "Nightjar: ([^"]*)"` (regexReplaceAll `"uid": "nightjar-([a-z-]+)"` $text $uid) $title -}}
{{- end -}}

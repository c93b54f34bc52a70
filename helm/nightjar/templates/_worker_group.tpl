{{/* A worker group, and what its pods have. Takes (dict "root" $ "group" values). */}}
{{- define "nightjar.workerGroup" -}}
groupName: {{ .group.groupName | quote }}
replicas: {{ int64 .group.minReplicas }}
minReplicas: {{ int64 .group.minReplicas }}
maxReplicas: {{ int64 .group.maxReplicas }}
rayStartParams:
  {{- include "nightjar.workerStartParams" .group | nindent 2 }}
template:
  {{- include "nightjar.rayPodWithOverrides" (dict "root" .root "group" .group "component" "worker") | nindent 2 }}
{{- end -}}

{{/* The same with the fields of groupOverrides on top; as written where there are none. */}}
{{- define "nightjar.workerGroupWithOverrides" -}}
{{- $group := include "nightjar.workerGroup" . -}}
{{- with .group.groupOverrides -}}
{{- $group = mergeOverwrite (fromYaml $group) (deepCopy .) | toYaml -}}
{{- end -}}
{{- $group -}}
{{- end -}}

{{/* `ray start` parameters of a worker group. Ray's autoscaler reads what a pod has from these and from its limits, before the pod is
there: without the accelerator's name in them it would never add one for a replica that asks for that accelerator. Nor does it know
parts of a GPU by the name of their limit, as KubeRay does, so their number is said. */}}
{{- define "nightjar.workerStartParams" -}}
{{- $own := dict -}}
{{- with .acceleratorType -}}
  {{- $own = dict "resources" (printf "%q" (toJson (dict (printf "accelerator_type:%s" .) 1))) -}}
{{- end -}}
{{- $limits := include "nightjar.limits" . | fromYaml -}}
{{- range $name, $number := $limits -}}
  {{- if and (regexMatch "^nvidia[.]com/mig-[0-9]+g[.][0-9]+gb$" $name) (not (hasKey $own "num-gpus")) (not (dig "groupOverrides" "resources" "" $)) -}}
    {{- $_ := set $own "num-gpus" (toString $number) -}}
  {{- end -}}
{{- end -}}
{{- merge (dict) (.rayStartParams | default dict) $own | toYaml -}}
{{- end -}}

{{/* What Ray's container is limited to. */}}
{{- define "nightjar.limits" -}}
{{- $resources := mergeOverwrite (dict) (deepCopy (.resources | default dict)) (deepCopy (dig "containerOverrides" "resources" (dict) .)) -}}
{{- $resources.limits | default dict | toYaml -}}
{{- end -}}

{{/* GPUs of a worker group's pod, counted as KubeRay 1.7 does: as the group is told, or the first limit whose name ends in gpu or is a
part of an NVIDIA GPU. `unknown` where a resource claim or a name that KubeRay does not count brings them. */}}
{{- define "nightjar.gpus" -}}
{{- $gpus := "" -}}
{{- $isUnknown := "" -}}
{{- range $name, $number := include "nightjar.limits" . | fromYaml -}}
  {{- if and $number (not $gpus) (regexMatch "gpu$|nvidia[.]com/mig-[0-9]+g[.][0-9]+gb$" $name) -}}
    {{- $gpus = toString $number -}}
  {{- else if and $number (regexMatch "gpu|mig-" $name) -}}
    {{- $isUnknown = "unknown" -}}
  {{- end -}}
{{- end -}}
{{- if or (dig "resources" "claims" "" .) (dig "containerOverrides" "resources" "claims" "" .) -}}
  {{- $isUnknown = "unknown" -}}
{{- end -}}
{{- $told := dig "groupOverrides" "resources" "GPU" (dig "rayStartParams" "num-gpus" "" .) . -}}
{{- $told | default $gpus | default $isUnknown | default "0" -}}
{{- end -}}

{{/* Whether pods of any worker group have GPUs; empty where none has. Takes the root. */}}
{{- define "nightjar.hasGpus" -}}
{{- range .Values.workerGroups }}{{ if ne "0" (include "nightjar.gpus" .) }}true{{ end }}{{ end -}}
{{- end -}}

{{/* GPU types that a worker group's resources name, as a JSON list; empty: whatever its GPUs turn out to be. */}}
{{- define "nightjar.acceleratorTypes" -}}
{{- $types := list -}}
{{- with .acceleratorType -}}
  {{- $types = append $types . -}}
{{- end -}}
{{- $named := printf "%v %v" (dig "rayStartParams" "resources" "" .) (dig "groupOverrides" "resources" "" .) -}}
{{- range regexFindAll "accelerator_type:[A-Za-z0-9._-]+" $named -1 -}}
  {{- $types = append $types (trimPrefix "accelerator_type:" .) -}}
{{- end -}}
{{- toJson $types -}}
{{- end -}}

{{/* Pods of a worker group, at most, that a replica which asks for a GPU type may count on; any type where it is empty. Ray's autoscaler
adds none of a group that names no type. Takes (dict "root" $ "group" values "type" name). */}}
{{- define "nightjar.podsOfType" -}}
{{- $types := include "nightjar.acceleratorTypes" .group | fromJsonArray -}}
{{- $pods := 0 -}}
{{- if or (not .type) (has .type $types) -}}
  {{- $pods = .group.maxReplicas -}}
{{- else if not $types -}}
  {{- $pods = .root.Values.autoscaler.enabled | ternary .group.minReplicas .group.maxReplicas -}}
{{- end -}}
{{- mul (int $pods) (int (dig "groupOverrides" "numOfHosts" 1 .group)) -}}
{{- end -}}

{{/* What a schema cannot say: values that contradict each other. Each message names the value and the way out. */}}
{{- define "nightjar.validate" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" (include "nightjar.fullname" .)) -}}
  {{- fail (printf "the RayService would be called %q, which KubeRay refuses: it takes small letters, digits and dashes, a letter first; choose another release name, or set fullnameOverride" (include "nightjar.fullname" .)) -}}
{{- end -}}
{{- if and .Values.models .Values.serveConfigV2 -}}
  {{- fail "models and serveConfigV2 are both set: with your own Serve config set models to []" -}}
{{- end -}}
{{- if not (or .Values.models .Values.serveConfigV2) -}}
  {{- fail "nothing to serve: name at least one of models, or paste a Serve config into serveConfigV2" -}}
{{- end -}}
{{- if .Values.serveConfigV2 -}}
  {{- $config := fromYaml .Values.serveConfigV2 -}}
  {{- if or (hasKey $config "Error") (not (kindIs "slice" $config.applications)) -}}
    {{- fail (printf "serveConfigV2 is not a Serve config: expected YAML with a list `applications` %s" ($config.Error | default "")) -}}
  {{- end -}}
  {{- $host := ($config.http_options | default dict).host | default "" | toString -}}
  {{- if regexMatch "^(127[.].*|localhost|::1)$" $host -}}
    {{- fail (printf "serveConfigV2: http_options.host %q listens for the pod itself alone, and the service would lead nowhere; write 0.0.0.0, or take it out" $host) -}}
  {{- end -}}
  {{- include "nightjar.validateAccelerators" (dict "root" . "applications" $config.applications) -}}
{{- end -}}
{{- include "nightjar.validateWorkers" . -}}
{{- include "nightjar.validateModels" . -}}
{{- include "nightjar.validateCluster" . -}}
{{- end -}}

{{- define "nightjar.validateModels" -}}
{{- $names := list -}}
{{- $prefixes := list -}}
{{- if .Values.policy.enabled -}}
  {{- $names = list "nightjar" -}}
  {{- $prefixes = list "/nightjar" -}}
{{- end -}}
{{- $hasGpus := include "nightjar.hasGpus" . -}}
{{- $allGpus := 0 -}}
{{- $uncounted := "" -}}
{{- $askedGpus := 0 -}}
{{- $accelerators := list -}}
{{- range .Values.workerGroups -}}
  {{- $accelerators = concat $accelerators (include "nightjar.acceleratorTypes" . | fromJsonArray) -}}
  {{- if eq "unknown" (include "nightjar.gpus" .) -}}
    {{- $uncounted = .groupName -}}
  {{- end -}}
  {{- $allGpus = add $allGpus (mul (include "nightjar.gpus" . | int) (include "nightjar.podsOfType" (dict "root" $ "group" . "type" "") | int)) -}}
{{- end -}}
{{- range .Values.models -}}
  {{- $prefix := .routePrefix | default "/" -}}
  {{- if has .name $names -}}
    {{- fail (printf "models: the name %q is taken; Serve's applications need names of their own" .name) -}}
  {{- end -}}
  {{- if has $prefix $prefixes -}}
    {{- fail (printf "models: %s: the routePrefix %q is taken; give each model its own, for example /%s" .name $prefix .name) -}}
  {{- end -}}
  {{- $names = append $names .name -}}
  {{- $prefixes = append $prefixes $prefix -}}
  {{- $kwargs := .engineKwargs | default dict -}}
  {{- if or (hasKey $kwargs "model") (hasKey $kwargs "served_model_name") -}}
    {{- fail (printf "models: %s: engineKwargs.model and engineKwargs.served_model_name are set by modelSource and modelId" .name) -}}
  {{- end -}}
  {{- $options := .deploymentConfig | default dict -}}
  {{- if hasKey $options "name" -}}
    {{- fail (printf "models: %s: deploymentConfig.name %q: the deployment is always called LLM; take it out" .name (toString $options.name)) -}}
  {{- end -}}
  {{- $drain := include "nightjar.drainSeconds" $ | int64 -}}
  {{- $graceful := hasKey $options "graceful_shutdown_timeout_s" | ternary $options.graceful_shutdown_timeout_s 120 -}}
  {{- if ge (float64 $graceful) (float64 $drain) -}}
    {{- fail (printf "models: %s: a replica that goes has %v s for its requests (deploymentConfig.graceful_shutdown_timeout_s, 120 unless set), but a worker pod ends them after %d, which is terminationGracePeriodSeconds less ten for Ray itself: raise terminationGracePeriodSeconds above %v, or lower the timeout" .name $graceful $drain (addf 10 $graceful)) -}}
  {{- end -}}
  {{- if and $hasGpus (not .acceleratorType) (not (hasKey ($options.ray_actor_options | default dict) "num_gpus")) -}}
    {{- fail (printf "models: %s: workerGroups have GPUs, but its replicas reserve none of them: Ray would put several on one GPU; name acceleratorType (Ray's name of the GPU), or deploymentConfig.ray_actor_options.num_gpus (how many a replica takes, 0 for a model on CPU)" .name) -}}
  {{- end -}}
  {{- if and .acceleratorType $.Values.autoscaler.enabled (not (has .acceleratorType $accelerators)) -}}
    {{- fail (printf "models: %s: no worker group has the acceleratorType %q: Ray's autoscaler knows of a group what the chart says of it, and would never add a pod for this model; write `acceleratorType: %s` into its group of workerGroups" .name .acceleratorType .acceleratorType) -}}
  {{- end -}}
  {{- $ranks := $kwargs.data_parallel_size_local | default $kwargs.data_parallel_size | default 1 -}}
  {{- if or (hasKey $kwargs "data_parallel_rank") $kwargs.data_parallel_external_lb -}}
    {{- $ranks = 1 -}}
  {{- end -}}
  {{- $gpus := mul ($kwargs.tensor_parallel_size | default 1) ($kwargs.pipeline_parallel_size | default 1) $ranks | int -}}
  {{- if .acceleratorType -}}
    {{- $wanted := ($options.autoscaling_config | default dict).max_replicas | default $options.num_replicas | default 1 -}}
    {{- $replicas := int (ternary 1 $wanted (eq (toString $wanted) "auto")) -}}
    {{- $askedGpus = add $askedGpus (mul $gpus $replicas) -}}
    {{- include "nightjar.validateRoom" (dict "root" $ "name" .name "type" .acceleratorType "gpus" $gpus "replicas" $replicas) -}}
  {{- end -}}
{{- end -}}
{{- if and (not $uncounted) (gt $askedGpus $allGpus) -}}
  {{- fail (printf "models: all their replicas together need %d GPUs, and workerGroups have %d at most: some would wait for ever; raise maxReplicas, or ask for fewer" $askedGpus $allGpus) -}}
{{- end -}}
{{- end -}}

{{/* Refuses a model by itself whose replicas the pods cannot hold. What several models leave each other is bin packing, which
`nightjar check` does. Takes (dict "root" $ "name" "type" "gpus" of a replica "replicas"). */}}
{{- define "nightjar.validateRoom" -}}
{{- $most := 0 -}}
{{- $room := 0 -}}
{{- $uncounted := false -}}
{{- range .root.Values.workerGroups -}}
  {{- $pods := include "nightjar.podsOfType" (dict "root" $.root "group" . "type" $.type) | int -}}
  {{- if $pods -}}
    {{- $gpus := include "nightjar.gpus" . -}}
    {{- $uncounted = or $uncounted (eq $gpus "unknown") -}}
    {{- $most = max $most (int $gpus) -}}
    {{- $room = add $room (mul $pods (div (int $gpus) (int $.gpus))) -}}
  {{- end -}}
{{- end -}}
{{- if and (gt (int .gpus) $most) (not $uncounted) -}}
  {{- fail (printf "models: %s: one replica needs %d GPUs in one pod (tensor_parallel_size x pipeline_parallel_size x data_parallel_size), but the largest of workerGroups that may be of type %s has %d" .name (int .gpus) .type $most) -}}
{{- end -}}
{{- if and (gt (int .replicas) $room) (not $uncounted) -}}
  {{- fail (printf "models: %s: %d replicas of %d GPUs of type %s each, and the pods of workerGroups have room for %d: the others would wait for ever; raise maxReplicas, or ask for fewer" .name (int .replicas) (int .gpus) .type $room) -}}
{{- end -}}
{{- end -}}

{{/* Ray's autoscaler adds a pod only for what its group names. Refuses a Serve config whose model asks for a GPU type that no group
names and no pod that is there anyway may have. Takes (dict "root" $ "applications" list). */}}
{{- define "nightjar.validateAccelerators" -}}
{{- $asked := dict -}}
{{- range .applications -}}
  {{- $name := .name | default "default" -}}
  {{- $entries := list -}}
  {{- if kindIs "map" .args -}}
    {{- $entries = .args.llm_configs | default list -}}
  {{- end -}}
  {{- range kindIs "slice" $entries | ternary $entries list -}}
    {{- if and (kindIs "map" .) .accelerator_type -}}
      {{- $_ := set $asked (toString .accelerator_type) $name -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- range $type, $name := $asked -}}
  {{- $pods := 0 -}}
  {{- range $.root.Values.workerGroups -}}
    {{- $pods = add $pods (include "nightjar.podsOfType" (dict "root" $.root "group" . "type" $type) | int) -}}
  {{- end -}}
  {{- if and $.root.Values.autoscaler.enabled (not $pods) -}}
    {{- fail (printf "serveConfigV2: %s: no worker group has the accelerator_type %q: Ray's autoscaler knows of a group what the chart says of it, and would never add a pod for this model; write `acceleratorType: %s` into its group of workerGroups" $name $type $type) -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{- define "nightjar.validateWorkers" -}}
{{- $groups := list -}}
{{- range .Values.workerGroups -}}
  {{- if has .groupName $groups -}}
    {{- fail (printf "workerGroups: the groupName %q is taken" .groupName) -}}
  {{- end -}}
  {{- $groups = append $groups .groupName -}}
  {{- if and .acceleratorType (hasKey (.rayStartParams | default dict) "resources") -}}
    {{- fail (printf "workerGroups: %s: acceleratorType and rayStartParams.resources are both set: write the accelerator into the resources, or take them out" .groupName) -}}
  {{- end -}}
  {{- $group := .groupName -}}
  {{- $overrides := .groupOverrides | default dict -}}
  {{- $start := include "nightjar.workerStartParams" . | fromYaml -}}
  {{- range $parameter := list "num-cpus" "num-gpus" "memory" "resources" -}}
    {{- if and $overrides.resources (hasKey $start $parameter) -}}
      {{- fail (printf "workerGroups: %s: groupOverrides.resources and rayStartParams.%s are both there (acceleratorType sets rayStartParams.resources), and KubeRay takes one of them: write all into groupOverrides.resources, a GPU type as `\"accelerator_type:NAME\": \"1\"`" $group $parameter) -}}
    {{- end -}}
  {{- end -}}
  {{- range $field := list "idleTimeoutSeconds" "priority" -}}
    {{- if and (hasKey $overrides $field) (not $.Values.autoscaler.enabled) -}}
      {{- fail (printf "workerGroups: %s: groupOverrides.%s is for Ray's autoscaler, and KubeRay refuses it without: set autoscaler.enabled, or take it out" $group $field) -}}
    {{- end -}}
  {{- end -}}
  {{- if gt (int .minReplicas) (int .maxReplicas) -}}
    {{- fail (printf "workerGroups: %s: minReplicas %d is above maxReplicas %d" .groupName (int .minReplicas) (int .maxReplicas)) -}}
  {{- end -}}
  {{- if and (lt (int .minReplicas) (int .maxReplicas)) (not $.Values.autoscaler.enabled) -}}
    {{- fail (printf "workerGroups: %s: from %d to %d pods needs autoscaler.enabled; without it set both to the number you want" .groupName (int .minReplicas) (int .maxReplicas)) -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{- define "nightjar.validateCluster" -}}
{{- if .Values.loadTest.enabled -}}
  {{- $load := 0 -}}
  {{- range regexFindAll ":[0-9.]+@" .Values.loadTest.regime -1 -}}
    {{- $load = addf $load (float64 (trimAll ":@" .)) -}}
  {{- end -}}
  {{- if gt (float64 $load) (float64 .Values.loadTest.deadlineS) -}}
    {{- fail (printf "loadTest: the regime lasts %v s, and its Jobs are ended deadlineS = %d after the models are waited for: raise deadlineS" $load (int64 .Values.loadTest.deadlineS)) -}}
  {{- end -}}
{{- end -}}
{{- $fault := .Values.gcsFaultTolerance -}}
{{- $storage := $fault.storage | default dict -}}
{{- if and (eq $fault.backend "redis") (not $fault.redis.address) -}}
  {{- fail "gcsFaultTolerance: backend redis needs redis.address" -}}
{{- end -}}
{{- if and (eq $fault.backend "rocksdb") (not (or $storage.claimName $storage.size)) -}}
  {{- fail "gcsFaultTolerance: backend rocksdb needs storage.claimName or storage.size" -}}
{{- end -}}
{{- if and (eq $fault.backend "rocksdb") $fault.externalStorageNamespace -}}
  {{- fail "gcsFaultTolerance: externalStorageNamespace belongs to backend redis; KubeRay refuses it with rocksdb: leave it empty" -}}
{{- end -}}
{{- if and $storage.claimName (or $storage.size $storage.storageClassName $storage.accessModes) -}}
  {{- fail "gcsFaultTolerance: storage.claimName is a claim of yours; size, storageClassName and accessModes are of one that KubeRay makes: name one or the other" -}}
{{- end -}}
{{- if and $storage (ne $fault.backend "rocksdb") -}}
  {{- fail (printf "gcsFaultTolerance: storage belongs to backend rocksdb (backend is %q)" $fault.backend) -}}
{{- end -}}
{{- range $way := list "ingress" "httpRoute" -}}
  {{- $given := get $.Values.public $way -}}
  {{- if $given.enabled -}}
    {{- if not (or $.Values.models $.Values.public.paths) -}}
      {{- fail (printf "public.%s: the chart does not know the routes of serveConfigV2; name them in public.paths, for example [/v1]" $way) -}}
    {{- end -}}
    {{- if eq $.Values.upgradeStrategy.type "NewClusterWithIncrementalUpgrade" -}}
      {{- fail (printf "public.%s: with upgradeStrategy.type NewClusterWithIncrementalUpgrade KubeRay makes the HTTPRoute itself, for every path, and moves traffic by it; close paths at your gateway, or choose NewCluster" $way) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- if and .Values.public.ingress.enabled (not .Values.public.ingress.hosts) -}}
  {{- fail "public.ingress: hosts is empty: name at least one host" -}}
{{- end -}}
{{- if and .Values.public.httpRoute.enabled (not .Values.public.httpRoute.parentRefs) -}}
  {{- fail "public.httpRoute: parentRefs is empty: name the gateway, for example [{name: public}]" -}}
{{- end -}}
{{- $upgrade := .Values.upgradeStrategy -}}
{{- if and $fault.externalStorageNamespace (ne $upgrade.type "None") -}}
  {{- fail (printf "gcsFaultTolerance: externalStorageNamespace would be shared by the old and the new cluster of an upgrade; leave it empty, or set upgradeStrategy.type to None (it is %q)" $upgrade.type) -}}
{{- end -}}
{{- $incremental := eq $upgrade.type "NewClusterWithIncrementalUpgrade" -}}
{{- if and $incremental (not $upgrade.clusterUpgradeOptions) -}}
  {{- fail "upgradeStrategy: NewClusterWithIncrementalUpgrade needs clusterUpgradeOptions" -}}
{{- end -}}
{{- if and $upgrade.serviceUrl (not $incremental) -}}
  {{- fail (printf "upgradeStrategy: serviceUrl belongs to NewClusterWithIncrementalUpgrade (type is %q); the release's own service needs none" $upgrade.type) -}}
{{- end -}}
{{- if and $incremental (not $upgrade.serviceUrl) (or .Values.helmTest.enabled (and .Values.loadTest.enabled (not .Values.loadTest.host))) -}}
  {{- fail "upgradeStrategy: NewClusterWithIncrementalUpgrade gives each cluster a service of its own, so helm test and the load test would ask nobody; set serviceUrl to the Gateway's address (kubectl get gateway), or helmTest.enabled to false and loadTest.host" -}}
{{- end -}}
{{- if and $incremental (not .Values.autoscaler.enabled) -}}
  {{- fail "upgradeStrategy: NewClusterWithIncrementalUpgrade needs autoscaler.enabled" -}}
{{- end -}}
{{- if and $upgrade.clusterUpgradeOptions (not $incremental) -}}
  {{- fail (printf "upgradeStrategy: clusterUpgradeOptions belong to NewClusterWithIncrementalUpgrade (type is %q)" $upgrade.type) -}}
{{- end -}}
{{- end -}}

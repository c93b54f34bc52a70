"""Configurations as people have them: Serve files, RayServices and command lines in the manner of Ray's and KubeRay's samples."""

from __future__ import annotations

from typing import Final

SERVE_FILES: Final = {
    "small": """\
applications:
- args:
    llm_configs:
      - model_loading_config:
          model_id: small-chat
          model_source: someone/small-chat-0.5b
        accelerator_type: A10G
        deployment_config:
          autoscaling_config:
            min_replicas: 1
            max_replicas: 2
  import_path: ray.serve.llm:build_openai_app
  name: llm_app
  route_prefix: "/"
""",
    "comments and blank lines": """\
# Our chat service. Owner: the platform team.

proxy_location: EveryNode
http_options:
  host: 0.0.0.0   # all interfaces
  port: 8000


applications:

  # the big one
  - name: "chat"
    route_prefix: /
    import_path: 'ray.serve.llm:build_openai_app'     # do not change
    args:
      llm_configs:
        - model_loading_config: {model_id: big, model_source: someone/big-70b}
          accelerator_type: H100

          engine_kwargs:   # vLLM's
            tensor_parallel_size: 8
            speculative_config: {method: draft_model, model: someone/draft-1b, num_speculative_tokens: 5}
            # max_model_len stays vLLM's

          deployment_config:
            num_replicas: 2


# the end
""",
    "what only ray.serve.llm knows": """\
applications:
- name: llm
  import_path: ray.serve.llm:build_openai_app
  args:
    ingress_deployment_config:
      autoscaling_config:
        min_replicas: 2
    llm_configs:
    - llm_engine: vLLM
      model_loading_config:
        model_id: m
      log_engine_metrics: true
      experimental_configs:
        stream_batching_interval_ms: 0   # honest token times

      placement_group_config:
        # one bundle a worker
        bundles:
        - {CPU: 1, GPU: 1}

        - {CPU: 1, GPU: 1}
        strategy: PACK
      engine_kwargs:
        tensor_parallel_size: 2
""",
    "no accelerator named": """\
applications:
- name: llm
  import_path: ray.serve.llm.build_openai_app
  args:
    llm_configs:
    - model_loading_config:
        model_id: m
        model_source: someone/m
      engine_kwargs:
        max_model_len: 4096
      deployment_config:
        num_replicas: 1
        ray_actor_options:
          num_cpus: 4
      runtime_env:
        env_vars:
          HF_HUB_OFFLINE: "1"
""",
    "on a cpu": """\
applications:
- name: llm
  import_path: ray.serve.llm:build_openai_app
  args:
    llm_configs:
    - model_loading_config: {model_id: m}
      accelerator_config: {kind: cpu}
      placement_group_config: {bundles: [{CPU: 1}]}
""",
    "two applications, one of them somebody's own": """\
applications:
- name: api
  route_prefix: /api
  import_path: shop.api:app
  deployments:
  - name: Api
    num_replicas: 3
-   name: chat
    route_prefix: /chat
    import_path: ray.serve.llm:build_openai_app
    args:
      llm_configs:
      -   model_loading_config:
              model_id: m
          accelerator_type: L4
    # of chat, too
""",
    "in braces": """\
{"applications": [{"name": "llm", "route_prefix": "/", "import_path": "ray.serve.llm:build_openai_app",
  "args": {"llm_configs": [{"model_loading_config": {"model_id": "m"}, "accelerator_type": "L4"}]}}]}
""",
    "a text in a block, at the end": """\
applications:
- name: llm
  import_path: ray.serve.llm:build_openai_app
  args:
    llm_configs:
    - model_loading_config: {model_id: m}
      accelerator_type: L40S
      engine_kwargs:
        chat_template: |
          {{ messages }}
          {# nothing else #}
""",
}

_SERVE_CONFIG: Final = """\
    applications:
      - name: chat
        import_path: ray.serve.llm:build_openai_app
        route_prefix: "/"
        args:
          llm_configs:
            - model_loading_config:
                model_id: chat
                model_source: someone/chat-7b
              accelerator_type: L40S
              log_engine_metrics: true

              engine_kwargs:
                max_num_seqs: 64
"""
RAY_SERVICES: Final = {
    "literal": f"""\
apiVersion: ray.io/v1
kind: RayService
metadata:
  name: chat   # the service
spec:
  serveConfigV2: |
{_SERVE_CONFIG}  rayClusterConfig:
    rayVersion: "2.60.0"
    headGroupSpec:
      rayStartParams: {{num-cpus: "0"}}
      template:
        spec:
          containers:
            - name: ray-head
              image: example/ray-llm
""",
    "stripped, last, among others": f"""\
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: other
data:
  key: |
    value
---
apiVersion: ray.io/v1
kind: RayService
metadata:
  name: chat
spec:
  rayClusterConfig: {{}}
  # what Serve serves
  serveConfigV2: |-
{_SERVE_CONFIG}""",
    "of the shape of KubeRay's LLM samples": """\
apiVersion: ray.io/v1
kind: RayService
metadata:
  name: chat
spec:
  serveConfigV2: |
    applications:
    - name: llms
      import_path: ray.serve.llm:build_openai_app
      route_prefix: "/"
      args:
        llm_configs:
        - model_loading_config:
            model_id: chat
            model_source: someone/chat-7b
          engine_kwargs:
            dtype: bfloat16
            max_model_len: 1024
            device: auto
            gpu_memory_utilization: 0.75
          deployment_config:
            autoscaling_config:
              min_replicas: 1
              max_replicas: 4
              target_ongoing_requests: 64
            max_ongoing_requests: 128
  rayClusterConfig:
    rayVersion: "2.46.0"
    headGroupSpec:
      rayStartParams: {num-cpus: "0"}
      template:
        spec:
          containers:
          - name: ray-head
            image: example/ray-llm
            env:
            - name: HUGGING_FACE_HUB_TOKEN
              valueFrom: {secretKeyRef: {name: hf-token, key: hf_token}}
---
apiVersion: v1
kind: Secret
metadata:
  name: hf-token
type: Opaque
stringData:
  hf_token: <yours>
""",
    "two services": "---\n".join(
        f"""\
apiVersion: ray.io/v1
kind: RayService
metadata: {{name: {name}}}
spec:
  serveConfigV2: |2
{_SERVE_CONFIG}
"""
        for name in ("one", "two")
    ).replace("|2", "|"),
}

COMMANDS: Final = {
    "plain": "vllm serve someone/chat-7b",
    "options": "vllm serve someone/chat-7b --tensor-parallel-size 2 --max-model-len 32k --enforce-eager --no-enable-prefix-caching "
    "--port 9000 --served-model-name chat",
    "short options, equals, dots": "vllm serve -tp 4 someone/chat-70b --gpu-memory-utilization=0.9 --dtype bfloat16 "
    "--speculative-config.method eagle3 --speculative-config.model someone/eagle --speculative-config.num_speculative_tokens 3",
    "json and environment": "VLLM_LOGGING_LEVEL=DEBUG vllm serve someone/chat-7b "
    '--speculative-config \'{"method": "draft_model", "model": "someone/draft", "num_speculative_tokens": 5}\'',
    "continued": "vllm serve someone/chat-7b \\\n    --max-num-seqs 64 \\\n    --trust-remote-code   # it has code of its own",
    "variables on lines of their own": "VLLM_USE_V1=1 \\\n  HF_HOME='/data/hub cache' OMP_NUM_THREADS=\"4\" \\\n"
    "vllm \\\n  serve someone/chat-7b",
    "by its path": "/opt/venv/bin/vllm serve someone/chat-7b --port 9000",
    "script": "#!/bin/sh\n# our server\nexec vllm serve ./models/chat \\\n  --host 127.0.0.1",
    "script with options of the shell and variables": (
        "#!/bin/bash\nset -euo pipefail\nset -x\n\nexport HF_HOME='/data/hub cache' VLLM_USE_V1=1\n"
        "export OMP_NUM_THREADS=4  # as many as there are\nexec env TZ=UTC uv run vllm serve someone/chat-7b --max-num-seqs 64"
    ),
    "another Python": "/usr/bin/python3.12 -m vllm.entrypoints.openai.api_server --model someone/chat-7b",
    "old entry point": "python -m vllm.entrypoints.openai.api_server --model someone/chat-7b "
    "--allowed-origins '[\"*\"]' --max-num-seqs 8",
}

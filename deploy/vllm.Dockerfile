# vLLM with the plugin. The tag is the version that the plugin was tested with, in its CPU build.
FROM vllm/vllm-openai:v0.32.0
COPY integrations/vllm /src/promptlora-vllm
RUN pip install --no-cache-dir /src/promptlora-vllm

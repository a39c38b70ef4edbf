"""lm-evaluation-harness, unchanged: `local-completions` for log-likelihoods and for generation.

It asks the server for its tokenizer, so that neither transformers nor torch is needed.
"""

import json

import http_tools
import pytest

lm_eval = pytest.importorskip("lm_eval")

CHOICES = [
    ("Once upon a time there was a little", [" girl", " of of"], 0),
    ("The king said to his", [" qzx", " daughter"], 1),
    ("They lived happily ever", [" after", " blue"], 0),
]


@pytest.fixture(scope="module")
def server(launcher, demo_model):
    return http_tools.serve(launcher, demo_model)


def write_tasks(folder):
    rows = [{"text": text, "choices": choices, "answer": answer} for text, choices, answer in CHOICES]
    (folder / "tales.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "tales.jsonl")}},
              "test_split": "test", "doc_to_text": "{{text}}", "target_delimiter": ""}
    (folder / "tales_choice.yaml").write_text(json.dumps({
        **common, "task": "tales_choice", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}", "metric_list": [{"metric": "acc"}]}))
    (folder / "tales_generate.yaml").write_text(json.dumps({
        **common, "task": "tales_generate", "output_type": "generate_until", "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}]}))


def test_log_likelihoods_and_generation(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_tasks(tmp_path)
    results = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={"base_url": f"{server.url}/v1/completions", "model": "demo-block", "num_concurrent": 2,
                    "max_retries": 1, "batch_size": 2},
        tasks=["tales_choice", "tales_generate"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tmp_path), include_defaults=False),
        log_samples=True, bootstrap_iters=0)
    for sample, (text, choices, answer) in zip(results["samples"]["tales_choice"], CHOICES):
        for (value, greedy), choice in zip(sample["filtered_resps"], choices):
            # What the harness makes of the answer is what Score says of the continuation.
            whole = server.complete(prompt=text + choice, echo=True, logprobs=1, max_tokens=0)
            values = whole["choices"][0]["logprobs"]["token_logprobs"]
            context = len(server.request("POST", "/tokenize", {"prompt": text})[2]["tokens"])
            assert float(value) == pytest.approx(sum(values[context:]), abs=1e-4)
            assert str(greedy) in ("True", "False")
    assert results["results"]["tales_choice"]["acc,none"] > 0.5
    for sample, (text, _, _) in zip(results["samples"]["tales_generate"], CHOICES):
        own = server.complete(prompt=text, temperature=0, max_tokens=12, stop=["."])["choices"][0]["text"]
        assert sample["filtered_resps"][0].strip() == own.strip()

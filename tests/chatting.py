"""A small checkpoint with a chat template: the embedded model, and ChatML as instruct models have it."""

from __future__ import annotations

from pathlib import Path

CHATML = (
    "{{ bos_token }}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
WITHOUT_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
SILENT = CHATML.replace("{% for message in messages %}", "{% for message in messages if message.role != 'system' %}")
"""A template that leaves system turns out without a word."""
BOS = "<s>"


def chat_checkpoint(folder: Path, template: str | dict[str, str] | None = CHATML) -> Path:
    """Write the embedded small model with three more tokens; its tokenizer opens plain text with a BOS token."""
    import torch
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ets import demo

    tokenizer = AutoTokenizer.from_pretrained(demo.model_path("small"))
    tokenizer.add_special_tokens({"bos_token": BOS, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    pair = (BOS, tokenizer.convert_tokens_to_ids(BOS))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[pair])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(demo.model_path("small"))
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    return folder

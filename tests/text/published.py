"""Small tokenizers in the forms in which models are published, trained here, with chat templates in the same styles.

`write(folder, style)` makes the folder of one; `STYLES` are their names. Templates have the moves of the published ones
(trimming, refusals, defaults, thinking), not their words.
"""

import json
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = (
    "What is 12 + 34? Ann has 6 nuts, buys 3 and eats 4. How many are left?",
    "The answer is 46. Let us think step by step, and put the final answer within \\boxed{}.",
    "You are a helpful assistant.\n\nRespond in the following format: <think> ... </think>",
    "user assistant system model question answer the a of to and in is it 0 1 2 3 4 5 6 7 8 9",
)
QWEN_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

QWEN25 = (
    "{%- if messages[0]['role'] == 'system' %}\n"
    "    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
    "{%- else %}\n"
    "    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}\n"
    "{%- endif %}\n"
    "{%- for message in messages %}\n"
    '    {%- if (message.role == "user") or (message.role == "system" and not loop.first)'
    ' or (message.role == "assistant" and not message.tool_calls) %}\n'
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)
QWEN3 = (
    "{%- if messages[0].role == 'system' %}\n"
    "    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}\n"
    "{%- endif %}\n"
    "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}\n"
    "{%- for message in messages[::-1] %}\n"
    "    {%- set index = (messages|length - 1) - loop.index0 %}\n"
    '    {%- if ns.multi_step_tool and message.role == "user" and message.content is string'
    " and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}\n"
    "        {%- set ns.multi_step_tool = false %}\n"
    "        {%- set ns.last_query_index = index %}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- for message in messages %}\n"
    "    {%- if message.content is string %}\n"
    "        {%- set content = message.content %}\n"
    "    {%- else %}\n"
    "        {%- set content = '' %}\n"
    "    {%- endif %}\n"
    '    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}\n'
    "        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}\n"
    '    {%- elif message.role == "assistant" %}\n'
    "        {%- if '</think>' in content %}\n"
    "            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n"
    "        {%- endif %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
    "        {{- '<think>\\n\\n</think>\\n\\n' }}\n"
    "    {%- endif %}\n"
    "{%- endif %}"
)
LLAMA3 = (
    "{{- bos_token }}\n"
    "{%- if not date_string is defined %}\n"
    "    {%- if strftime_now is defined %}\n"
    '        {%- set date_string = strftime_now("%d %b %Y") %}\n'
    "    {%- else %}\n"
    '        {%- set date_string = "26 Jul 2024" %}\n'
    "    {%- endif %}\n"
    "{%- endif %}\n"
    "{#- The system message may be left out. #}\n"
    "{%- if messages[0]['role'] == 'system' %}\n"
    "    {%- set system_message = messages[0]['content']|trim %}\n"
    "    {%- set messages = messages[1:] %}\n"
    "{%- else %}\n"
    '    {%- set system_message = "" %}\n'
    "{%- endif %}\n"
    '{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}\n'
    '{{- "Cutting Knowledge Date: December 2023\\n" }}\n'
    '{{- "Today Date: " + date_string + "\\n\\n" }}\n'
    "{{- system_message }}\n"
    '{{- "<|eot_id|>" }}\n'
    "{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    "+ message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
    "{%- endif %}\n"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)
MISTRAL = (
    '{%- if messages[0]["role"] == "system" %}\n'
    '    {%- set system_message = messages[0]["content"] %}\n'
    "    {%- set loop_messages = messages[1:] %}\n"
    "{%- else %}\n"
    "    {%- set loop_messages = messages %}\n"
    "{%- endif %}\n"
    "{{- bos_token }}\n"
    "{%- for message in loop_messages %}\n"
    '    {%- if message["role"] == "user" %}\n'
    "        {%- if loop.last and system_message is defined %}\n"
    '            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}\n'
    "        {%- else %}\n"
    '            {{- "[INST] " + message["content"] + "[/INST]" }}\n'
    "        {%- endif %}\n"
    '    {%- elif message["role"] == "assistant" %}\n'
    '        {{- " " + message["content"] + eos_token}}\n'
    "    {%- else %}\n"
    '        {{- raise_exception("Only user and assistant roles are supported!") }}\n'
    "    {%- endif %}\n"
    "{%- endfor %}\n"
)
SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HEADERS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
)
STYLES = {
    # style: (tokenizer, its special tokens, its other added tokens, roles, stop tokens, template)
    "qwen2.5": ("bytes", CHAT, ("<tool_call>", "</tool_call>"), ("", "<|im_end|>", "<|endoftext|>"), CHAT[::2], QWEN25),
    "qwen3": ("bytes", CHAT, ("<think>", "</think>"), ("", "<|im_end|>", "<|endoftext|>"), CHAT[::2], QWEN3),
    "llama3": ("tiktoken", HEADERS, (), ("<|begin_of_text|>", "<|eot_id|>", ""), HEADERS[1:2] + HEADERS[4:], LLAMA3),
    "gemma": (
        "fallback",
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        ("\n\n", "▁▁", "<table>"),
        ("<bos>", "<eos>", "<pad>"),
        ("<eos>", "<end_of_turn>"),
        GEMMA,
    ),
    "mistral": ("unigram", ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), (), ("<s>", "</s>", ""), ("</s>",), MISTRAL),
    "smollm": ("bytes", CHAT, (), ("<|im_start|>", "<|im_end|>", "<|im_end|>"), ("<|im_end|>",), SMOLLM),
}


def write(folder: Path, style: str, *, template: str | None = None, jinja: bool = True) -> Path:
    """Make the tokenizer of that style in `folder`, as a checkpoint has it, and return the folder."""
    kind, special, other, (bos, eos, pad), stops, usual = STYLES[style]
    made = Tokenizer.from_str(trained(kind, special))
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    made.add_tokens([AddedToken(name, normalized=False) for name in other])
    folder.mkdir(parents=True, exist_ok=True)
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, made.token_to_id(bos))]
        )
    made.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    config: dict[str, object] = {name: token for name, token in roles.items() if token}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    text = usual if template is None else template
    if jinja:
        (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    else:
        config["chat_template"] = text
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    ids = [made.token_to_id(name) for name in stops]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids if len(ids) > 1 else ids[0]}))
    return folder


@lru_cache
def trained(kind: str, special: tuple[str, ...]) -> str:
    """The JSON of a tokenizer of that kind, trained on `TEXTS`, without added tokens of a byte-level one."""
    made = {"bytes": _bytes, "tiktoken": _tiktoken, "fallback": _fallback, "unigram": _unigram}[kind](special)
    return made.to_str()


def _bytes(special: tuple[str, ...]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(QWEN_CUT), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    _train(
        made,
        trainers.BpeTrainer(show_progress=False, vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    return made


def _tiktoken(special: tuple[str, ...]) -> Tokenizer:
    made = _bytes(special)
    content = json.loads(made.to_str())
    content["model"]["ignore_merges"] = True
    content["normalizer"] = None
    return Tokenizer.from_str(json.dumps(content))


def _fallback(special: tuple[str, ...]) -> Tokenizer:
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    _train(
        made, trainers.BpeTrainer(show_progress=False, vocab_size=620, special_tokens=[*special, *BYTES, "\n\n", "▁▁"])
    )
    content = json.loads(made.to_str())
    # The pieces of bytes are ordinary ones, as in the published files.
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] in special]
    return Tokenizer.from_str(json.dumps(content))


def _unigram(special: tuple[str, ...]) -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _train(
        made,
        trainers.UnigramTrainer(show_progress=False, vocab_size=200, special_tokens=list(special), unk_token="<unk>"),
    )
    content = json.loads(made.to_str())
    model = content["model"]
    # Published Unigram files hold the special tokens as pieces with the best score of all: 0.
    model["vocab"] = model["vocab"][: len(special)] + [[name, -20.0] for name in BYTES] + model["vocab"][len(special) :]
    model["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(content))


def _train(made: Tokenizer, trainer: trainers.Trainer) -> None:
    made.train_from_iterator(TEXTS * 3, trainer)

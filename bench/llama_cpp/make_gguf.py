#!/usr/bin/env python3
"""Writes a GGUF file of random bf16 weights with the sizes of a Hugging Face config.json, for llama.cpp.

    make_gguf.py CONFIG.json OUT.gguf

Knows model_type mamba, falcon_mamba, mamba2, granitemoe and granitemoehybrid. Tensors of one shape share their random
bytes, of which the file holds a copy each; routers differ, so that layers choose different experts. Norms, convolutions,
A, D and time steps are float32, as llama.cpp's own conversion leaves them. The vocabulary is made up: only ids are fed.

Needs PyPI's gguf and numpy (compare.py, beside this file, installs them in its virtual environment).
"""

import json
import sys

import gguf
import numpy as np

BF16 = gguf.GGMLQuantizationType.BF16


class Writer:
    def __init__(self, path, arch, name):
        self.out = gguf.GGUFWriter(path, arch)
        self.out.add_name(name)
        self.out.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
        self.random = np.random.default_rng(1)
        self.shared = {}

    def weight(self, name, *shape):
        """A matrix, or a stack of them, in bf16."""
        if shape not in self.shared:
            values = self.random.standard_normal(shape, dtype=np.float32)
            values *= np.float32(shape[-1] ** -0.5)
            self.shared[shape] = gguf.quants.quantize(values, BF16)
        self.out.add_tensor(name + ".weight", self.shared[shape], raw_dtype=BF16)

    def f32(self, name, values):
        self.out.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))

    def norm(self, name, *shape):
        self.f32(name + ".weight", np.ones(shape))

    def close(self):
        self.out.write_header_to_file()
        self.out.write_kv_data_to_file()
        self.out.write_tensors_to_file()
        self.out.close()


def vocabulary(out, size, pre):
    """Byte tokens, as byte-pair encodings of the GPT-2 kind must have, and fillers."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    tokens = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    tokens += [f"token{i}" for i in range(256, size - 1)] + ["<|endoftext|>"]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list(tokens)
    out.add_token_types([gguf.TokenType.NORMAL] * (size - 1) + [gguf.TokenType.CONTROL])
    out.add_token_merges(["t o", "to k"])
    out.add_bos_token_id(size - 1)
    out.add_eos_token_id(size - 1)


def scan_keys(out, inner, state, heads, taps):
    out.add_ssm_conv_kernel(taps)
    out.add_ssm_inner_size(inner)
    out.add_ssm_state_size(state)
    out.add_ssm_time_step_rank(heads)


def mamba1(w, prefix, c):
    d, state, rank = c["hidden_size"], c["state_size"], c["time_step_rank"]
    inner, taps = c.get("intermediate_size") or c["expand"] * d, c["conv_kernel"]
    w.weight(prefix + "ssm_in", 2 * inner, d)
    w.f32(prefix + "ssm_conv1d.weight", w.random.standard_normal((inner, taps)) * 0.3)
    w.f32(prefix + "ssm_conv1d.bias", np.zeros(inner))
    w.weight(prefix + "ssm_x", rank + 2 * state, inner)
    w.weight(prefix + "ssm_dt", inner, rank)
    w.f32(prefix + "ssm_dt.bias", np.full(inner, -4))
    w.f32(prefix + "ssm_a", -np.tile(np.arange(1, state + 1), (inner, 1)))
    w.f32(prefix + "ssm_d", np.ones(inner))
    w.weight(prefix + "ssm_out", d, inner)


def mamba2(w, prefix, d, inner, state, groups, heads, taps):
    channels = inner + 2 * groups * state
    w.weight(prefix + "ssm_in", inner + channels + heads, d)
    w.f32(prefix + "ssm_conv1d.weight", w.random.standard_normal((channels, taps)) * 0.3)
    w.f32(prefix + "ssm_conv1d.bias", np.zeros(channels))
    w.f32(prefix + "ssm_dt.bias", np.full(heads, -4))
    w.f32(prefix + "ssm_a", -np.linspace(1, 16, heads)[:, None])
    w.f32(prefix + "ssm_d", np.ones((heads, 1)))
    w.norm(prefix + "ssm_norm", groups, inner // groups)
    w.weight(prefix + "ssm_out", d, inner)


def attention(w, prefix, d, heads, kv_heads, head_dim):
    w.weight(prefix + "attn_q", heads * head_dim, d)
    w.weight(prefix + "attn_k", kv_heads * head_dim, d)
    w.weight(prefix + "attn_v", kv_heads * head_dim, d)
    w.weight(prefix + "attn_output", d, heads * head_dim)


def experts(w, prefix, d, count, hidden, shared):
    w.norm(prefix + "ffn_norm", d)
    w.f32(prefix + "ffn_gate_inp.weight", w.random.standard_normal((count, d)) * d**-0.5)
    w.weight(prefix + "ffn_gate_exps", count, hidden, d)
    w.weight(prefix + "ffn_up_exps", count, hidden, d)
    w.weight(prefix + "ffn_down_exps", count, d, hidden)
    if shared:
        w.weight(prefix + "ffn_gate_shexp", shared, d)
        w.weight(prefix + "ffn_up_shexp", shared, d)
        w.weight(prefix + "ffn_down_shexp", d, shared)


def write(c, path, name):
    kind, d, layers, vocab = c["model_type"], c["hidden_size"], c["num_hidden_layers"], c["vocab_size"]
    archs = {"mamba": "mamba", "falcon_mamba": "mamba", "mamba2": "mamba2", "granitemoe": "granitemoe",
             "granitemoehybrid": "granitehybrid"}
    if kind not in archs:
        sys.exit(f"make_gguf.py: model_type must be one of {', '.join(archs)}, got {kind}")
    w = Writer(path, archs[kind], name)
    out = w.out
    out.add_block_count(layers)
    out.add_embedding_length(d)
    out.add_vocab_size(vocab)
    out.add_layer_norm_rms_eps(c.get("rms_norm_eps") or c.get("layer_norm_epsilon") or 1e-5)
    vocabulary(out, vocab, "default" if "granite" in kind else "olmo")
    w.weight("token_embd", vocab, d)
    w.norm("output_norm", d)
    if not c.get("tie_word_embeddings", True):
        w.weight("output", vocab, d)

    if "granite" not in kind:
        out.add_context_length(2**20)
        out.add_feed_forward_length(0)
        out.add_head_count(0)
        inner = c.get("intermediate_size") or c["expand"] * d
        two = kind == "mamba2"
        heads = c["num_heads"] if two else c["time_step_rank"]
        scan_keys(out, inner, c["state_size"], heads, c["conv_kernel"])
        if two:
            out.add_ssm_group_count(c["n_groups"])
        else:
            out.add_ssm_dt_b_c_rms(kind == "falcon_mamba")
        for i in range(layers):
            prefix = f"blk.{i}."
            w.norm(prefix + "attn_norm", d)
            if two:
                mamba2(w, prefix, d, inner, c["state_size"], c["n_groups"], heads, c["conv_kernel"])
            else:
                mamba1(w, prefix, c)
        return w.close()

    heads, kv_heads, hidden = c["num_attention_heads"], c["num_key_value_heads"], c["intermediate_size"]
    types = c.get("layer_types") or ["attention"] * layers
    hybrid, shared = "mamba" in types, c.get("shared_intermediate_size", 0) if kind == "granitemoehybrid" else 0
    out.add_context_length(2**20 if hybrid else c["max_position_embeddings"])
    out.add_feed_forward_length(hidden)
    out.add_head_count(heads)
    out.add_head_count_kv([kv_heads if t == "attention" else 0 for t in types] if hybrid else kv_heads)
    out.add_rope_dimension_count(d // heads)
    out.add_rope_freq_base(c.get("rope_theta", 10000.0))
    out.add_expert_count(c["num_local_experts"])
    out.add_expert_used_count(c["num_experts_per_tok"])
    out.add_logit_scale(c["logits_scaling"])
    out.add_residual_scale(c["residual_multiplier"])
    out.add_embedding_scale(c["embedding_multiplier"])
    out.add_attention_scale(c["attention_multiplier"])
    if shared:
        out.add_expert_shared_feed_forward_length(shared)
    if hybrid:
        inner = c["mamba_n_heads"] * c["mamba_d_head"]
        scan_keys(out, inner, c["mamba_d_state"], c["mamba_n_heads"], c["mamba_d_conv"])
        out.add_ssm_group_count(c["mamba_n_groups"])
        out.add_rope_scaling_finetuned(c.get("position_embedding_type") == "rope")
    for i, layer in enumerate(types):
        prefix = f"blk.{i}."
        w.norm(prefix + "attn_norm", d)
        if layer == "mamba":
            mamba2(w, prefix, d, inner, c["mamba_d_state"], c["mamba_n_groups"], c["mamba_n_heads"], c["mamba_d_conv"])
        else:
            attention(w, prefix, d, heads, kv_heads, d // heads)
        experts(w, prefix, d, c["num_local_experts"], hidden, shared)
    return w.close()


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        config = json.load(file)
    write(config, sys.argv[2], sys.argv[1])


main()

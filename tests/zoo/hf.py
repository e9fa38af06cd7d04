"""Models of the transformers library from tiny configurations; nothing is downloaded."""

import torch.nn.functional as F

from .case import Case, floats, integers, none, token_loss

VOCAB = 40


def _tokens(seed=3, length=8):
    """Draw four texts, without the tokens that stand for padding and the start."""
    return integers(VOCAB - 3, 4, length, seed=seed) + 3


def _own_loss(out, y):
    """Take the loss that the model computed."""
    return out.loss


def _logits_loss(out, y):
    """Compute the loss of a classifier's logits."""
    return F.cross_entropy(out.logits, y)


def _with_labels():
    """Draw texts that are their own labels; the model shifts them."""
    tokens = _tokens()
    return {"input_ids": tokens, "labels": tokens}


def gpt2():
    """Build a GPT-2 with its head, tied to the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": VOCAB}
    drop = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    return GPT2LMHeadModel(GPT2Config(**sizes, **drop, bos_token_id=1, eos_token_id=2, use_cache=False))


def bert():
    """Build a BERT that classifies sentences."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(**sizes, vocab_size=VOCAB, max_position_embeddings=16, num_labels=3, use_cache=False)
    return BertForSequenceClassification(config)


def vit():
    """Build a vision transformer that classifies images."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    drop = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    return ViTForImageClassification(ViTConfig(**sizes, **drop, image_size=16, patch_size=4, num_labels=3))


def resnet():
    """Build a residual net that classifies images."""
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]}
    return ResNetForImageClassification(ResNetConfig(**sizes, layer_type="basic", num_labels=3))


def llama():
    """Build a Llama with grouped keys and values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    drop = {"attention_dropout": 0.1, "max_position_embeddings": 16, "use_cache": False}
    return LlamaForCausalLM(LlamaConfig(**sizes, **drop, num_key_value_heads=2, vocab_size=VOCAB))


def t5():
    """Build an encoder and a decoder with relative positions."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": VOCAB}
    config = T5Config(**sizes, dropout_rate=0.1, decoder_start_token_id=0, use_cache=False)
    return T5ForConditionalGeneration(config)


def transformers_cases() -> tuple[Case, ...]:
    """List the cases of the transformers library, which is imported here."""
    import transformers  # noqa: F401

    def images():
        return {"pixel_values": floats(4, 3, 16, 16)}

    def classes():
        return integers(3, 4)

    return (
        Case("hf_gpt2", gpt2, _with_labels, none, _own_loss, about="computes its own loss from labels"),
        Case(
            "hf_gpt2_logits",
            gpt2,
            _tokens,
            lambda: _tokens(seed=5),
            lambda out, y: token_loss(out.logits, y),
            about="one positional input, loss of .logits outside the model",
        ),
        Case(
            "hf_bert",
            bert,
            lambda: {"input_ids": _tokens(), "labels": classes()},
            none,
            _own_loss,
            about="pooled first token, own loss",
        ),
        Case("hf_vit", vit, images, classes, _logits_loss, about="class token, loss of .logits"),
        Case("hf_resnet", resnet, images, classes, _logits_loss, about="batch norm"),
        Case("hf_llama", llama, _with_labels, none, _own_loss, about="rotary positions, grouped keys, RMS norm"),
        Case(
            "hf_t5",
            t5,
            lambda: {"input_ids": _tokens(), "labels": _tokens(seed=5, length=6)},
            none,
            _own_loss,
            about="encoder and decoder, cross-attention, relative positions",
        ),
    )

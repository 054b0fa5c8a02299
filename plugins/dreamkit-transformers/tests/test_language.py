"""A language model's random weights and gradient checkpointing; test_contract_language.py tests its outputs."""

import torch

from small_language import make, positions


def test_random_weights_come_from_the_global_generator():
    first, same, other = (make(seed=seed).state_dict()["model.lm_head.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_a_frozen_model_in_evaluation_mode_recomputes_its_layers():
    part = make()
    part.requires_grad_(False)
    embeds = torch.randn(1, 5, 32)
    calls = []
    part.model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))

    def gradient():
        leaf = embeds.clone().requires_grad_()
        part(leaf, *positions(5)).square().sum().backward()
        return leaf.grad

    expected = gradient()
    assert len(calls) == 1
    part.enable_gradient_checkpointing()
    torch.testing.assert_close(gradient(), expected)
    assert len(calls) == 3  # once in the forward pass, twice with the backward pass
    cache = part.new_cache()
    with torch.no_grad():
        position_ids, segment_ids = positions(5)
        part(embeds[:, :3], position_ids[:, :3], segment_ids[:, :3], cache)
        last = part(embeds[:, 3:], position_ids[:, 3:], segment_ids[:, 3:], cache)
        torch.testing.assert_close(last, part(embeds, position_ids, segment_ids)[:, 3:])

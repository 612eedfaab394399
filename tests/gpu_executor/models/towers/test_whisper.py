"""Encoders that hear give transformers' features, padded or not, and Ultravox reads long clips window by window."""

from __future__ import annotations

import pytest
import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder as Reference

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.ultravox import _read_tower
from gpu_executor.models.families.whisper import read_whisper, whisper_rules
from gpu_executor.models.rules import match_names
from gpu_executor.models.towers.tower import TowerInput
from gpu_executor.models.towers.ultravox import UltravoxTower
from gpu_executor.models.towers.whisper import WhisperStack, num_rows

CONFIG = {
    "num_mel_bins": 12, "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "max_source_positions": 20, "activation_function": "gelu",
}  # fmt: skip


@pytest.fixture(scope="module")
def reference() -> Reference:
    torch.manual_seed(5)
    model = Reference._from_config(WhisperConfig(**CONFIG), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module")
def stack(reference: Reference) -> WhisperStack:
    stored = {f"audio_tower.{name}": tensor for name, tensor in reference.state_dict().items()}
    matches = match_names(stored, whisper_rules(r"audio_tower\.", "tower.encoder.", "tower.norm"))
    weights = {match.targets[0].removeprefix("tower.encoder."): stored[match.source] for match in matches}
    module = WhisperStack(read_whisper(ConfigReader(CONFIG)))
    module.load_state_dict({name: tensor for name, tensor in weights.items() if not name.startswith("tower.norm")})
    return module.eval()


def mel(num_frames: int) -> torch.Tensor:
    return torch.randn(12, num_frames, generator=torch.Generator().manual_seed(num_frames))


@torch.inference_mode()
def test_a_full_window_is_that_of_transformers(reference: Reference, stack: WhisperStack) -> None:
    wanted = reference(mel(40)[None]).last_hidden_state[0]
    torch.testing.assert_close(reference.layer_norm(stack(mel(40), 40)), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_frames", [13, 14])
@torch.inference_mode()
def test_padding_changes_nothing_once_the_next_two_frames_are_there(stack: WhisperStack, num_frames: int) -> None:
    padded = torch.nn.functional.pad(mel(num_frames), (0, 40 - num_frames), value=-1.5)
    whole, short = stack(padded, num_frames), stack(padded[:, : num_frames + 2], num_frames)
    rows = num_rows(num_frames)
    torch.testing.assert_close(short[:rows], whole[:rows], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(whole[:rows], stack(padded, 40)[:rows], atol=1e-3)


@pytest.fixture(scope="module", params=["swiglu", "gelu"])
def ultravox(request: pytest.FixtureRequest) -> UltravoxTower:
    keys = {"audio_config": CONFIG, "stack_factor": 4, "hidden_size": 24, "projector_act": request.param}
    torch.manual_seed(6)
    tower = _read_tower(ConfigReader(keys | {"projector_ln_mid": request.param == "swiglu"}), 16).build().eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return tower


@torch.inference_mode()
def features(tower: UltravoxTower, *clips: torch.Tensor) -> list[torch.Tensor]:
    items = [TowerInput("audio", {"audio_values": clip}) for clip in clips]
    return tower(items, lambda ids: pytest.fail("this tower embeds nothing"))


def test_full_windows_are_clips_of_their_own(ultravox: UltravoxTower) -> None:
    long = mel(80)
    (together,) = features(ultravox, long)
    apart = features(ultravox, long[:, :40], long[:, 40:])
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=1e-5)


def test_a_last_window_is_read_as_if_it_were_full_and_has_tokens_for_what_it_has(ultravox: UltravoxTower) -> None:
    long = mel(51)
    (whole,) = features(ultravox, long)
    assert len(whole) == 5 + 2  # 40 and 11 frames, 8 of them for a token
    (first,) = features(ultravox, long[:, :40])
    torch.testing.assert_close(whole[:5], first, atol=1e-5, rtol=1e-5)
    changed = long.clone()
    changed[:, 50] += 1
    assert not torch.allclose(features(ultravox, changed)[0][5:], whole[5:], atol=1e-3)

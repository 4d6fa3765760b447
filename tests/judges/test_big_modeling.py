"""What people do with big models that do not fit, after the situations that accelerate's tests name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib_async_mover import Mover, attach, detach
from lib_async_mover.plan.workload import MIB
from tests.checked_backend import CheckedBackend
from tests.judges import needed
from tests.pair import hasty

needed()

import diffusers as d  # noqa: E402
import transformers as t  # noqa: E402

from tests.judges import languages, pictures, unets  # noqa: E402
from tests.judges.case import ids, owned, packed_bytes, rand, same  # noqa: E402

CASES = {case.name: case for case in [*unets.CASES, *languages.CASES, *pictures.CASES]}


class Judged:
    """A streamed model and its twin, who are asked the same."""

    def __init__(self, model: nn.Module, share: float = 0.3, whole: bool = False) -> None:
        self.model: Any = model
        self.twin: Any = copy.deepcopy(model)
        backend = CheckedBackend(poison=True, delay=hasty())
        self.mover: Mover = attach(model, "cpu", share * packed_bytes(model) / MIB, whole=whole, backend=backend)

    def ask(self, question: Callable[[Any], Any], seed: int = 0) -> Any:
        """``question`` is put to both; their answers must agree to the bit."""
        torch.manual_seed(seed)
        ours = question(self.model)
        torch.manual_seed(seed)
        theirs = question(self.twin)
        assert type(ours) is type(theirs)
        equal = same(ours, theirs)
        assert equal, f"something else for seed {seed}"
        return ours

    def run(self, inputs: Callable[[], dict[str, Any]], times: int = 4) -> None:
        for seed in range(times):
            self.ask(lambda model: model(**inputs()), seed)

    def check_streamed(self) -> None:
        assert self.mover.stats()["bytes_per_step"] > 0


@pytest.fixture
def judge() -> Iterator[Callable[..., Judged]]:
    """Makes them; in the end all are detached, and have their twins' weights in RAM."""
    made: list[Judged] = []

    def make(model: nn.Module | str, **how: Any) -> Judged:
        made.append(Judged(CASES[model].model() if isinstance(model, str) else model, **how))
        return made[-1]

    yield make
    for one in made:
        detach(one.model)
        for ours, theirs in zip(owned(one.model).values(), owned(one.twin).values(), strict=True):
            assert torch.equal(ours, theirs) and ours.device.type == "cpu"


class Odd(nn.Module):
    """Layers in a list, a buffer that is not saved, a layer that is never used, one whose weight is used without it."""

    def __init__(self, functional: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(24, 24) for _ in range(6))
        self.norm = nn.BatchNorm1d(24)
        self.unused = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24))
        self.register_buffer("table", rand(24), persistent=False)
        self.layers[2].register_buffer("shift", rand(24), persistent=False)
        self.functional = functional

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        for layer in self.layers:
            x = torch.tanh(F.linear(x, layer.weight, layer.bias) if self.functional else layer(x)) + self.table
        return {"out": self.norm(x)}


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_unused_layers_and_buffers_that_are_not_saved(judge: Any, functional: bool, whole: bool) -> None:
    torch.manual_seed(0)
    judged = judge(Odd(functional).eval(), whole=whole)
    judged.run(lambda: dict(x=rand(3, 24)))


@pytest.mark.parametrize("name", ["gpt2", "t5", "bert", "whisper"])
def test_tied_weights_stay_tied(judge: Any, name: str) -> None:
    judged = judge(name)
    judged.run(CASES[name].inputs)
    judged.check_streamed()
    for model in (judged.model, judged.twin):
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
        model.get_input_embeddings().weight.mul_(1.01)
    judged.run(CASES[name].inputs)


HOW = {"greedy": {}, "sampled": dict(do_sample=True), "beams": dict(num_beams=3), "no cache": dict(use_cache=False)}
PROMPT: dict[str, Callable[[], dict[str, Any]]] = {
    "gpt2": languages.tokens, "llama": languages.tokens, "mixtral": languages.tokens, "t5": languages.tokens,
    "bart": languages.tokens, "whisper": lambda: dict(input_features=rand(1, 8, 40)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "how"), [*((name, "greedy") for name in PROMPT), *((n, h) for n in ("gpt2", "t5") for h in list(HOW)[1:])]
)
def test_generation(judge: Any, name: str, how: str) -> None:
    judged = judge(name)
    for seed in range(2):
        judged.ask(lambda m: m.generate(**PROMPT[name](), max_new_tokens=5, min_new_tokens=5, **HOW[how]), seed)


def test_a_cache_made_by_hand(judge: Any) -> None:
    def talk(model: Any) -> list[torch.Tensor]:
        cache, heard = t.DynamicCache(config=model.config), []
        for length in (5, 1, 1, 3):
            heard.append(model(input_ids=ids(1, length), past_key_values=cache, use_cache=True).logits)
        return heard

    judged = judge("llama")
    judged.ask(talk)
    judged.ask(talk, 1)


HALVES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "text of clip": ("clip", lambda m: m.get_text_features(input_ids=ids(2, 7))),
    "pictures of clip": ("clip", lambda m: m.get_image_features(**pictures.pixels())),
    "encoder of t5": ("t5", lambda m: m.get_encoder()(input_ids=ids(2, 7))),
    "encoder of a vae": ("autoencoder_kl", lambda m: m.encode(rand(1, 3, 16, 16)).latent_dist.mode()),
    "decoder of a vae": ("autoencoder_kl", lambda m: m.decode(rand(1, 4, 8, 8)).sample),
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("half", HALVES)
def test_half_of_a_model_before_and_after_all_of_it(judge: Any, half: str, whole: bool) -> None:
    name, question = HALVES[half]
    judged = judge(name, whole=whole)
    judged.ask(question)
    judged.run(CASES[name].inputs, 3)
    judged.ask(question)
    judged.run(CASES[name].inputs, 2)


@pytest.mark.parametrize("more", [{}, dict(return_dict=False), dict(output_hidden_states=True, output_attentions=True)])
def test_keywords_and_what_is_returned(judge: Any, more: dict[str, Any]) -> None:
    judged = judge(t.LlamaModel._from_config(t.LlamaConfig(**languages.LLAMA), attn_implementation="eager").eval())
    judged.run(lambda: dict(languages.tokens(), **more))  # the answers are of the same type
    judged.check_streamed()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(judge: Any, dtype: torch.dtype) -> None:
    judged = judge(CASES["llama"].model().to(dtype))
    judged.run(CASES["llama"].inputs)
    judged.check_streamed()


@pytest.mark.parametrize("mode", [torch.autocast("cpu", torch.bfloat16), torch.inference_mode()])
def test_autocast_and_inference_mode(judge: Any, mode: Any) -> None:
    judged = judge("autoencoder_kl")
    for _ in range(2):
        with mode:
            judged.run(CASES["autoencoder_kl"].inputs, 3)
        judged.run(CASES["autoencoder_kl"].inputs, 2)
    judged.check_streamed()


def test_models_in_turn(judge: Any) -> None:
    """A ControlNet before a UNet in every step, after text and before pictures."""
    text, vae = judge("clip_text", whole=True), judge("autoencoder_kl", whole=True)
    control, unet = judge("controlnet"), judge("sd1_unet")
    for image in range(2):
        words = text.ask(lambda m: m(input_ids=ids(2, 5)), image).last_hidden_state[..., :16].contiguous()
        sample = rand(2, 4, 8, 8)
        for step in (900, 500, 100):
            given = dict(sample=sample, timestep=step, encoder_hidden_states=words)
            hint = control.ask(lambda m: m(**given, controlnet_cond=torch.ones(2, 3, 16, 16)))  # noqa: B023
            extra = dict(
                down_block_additional_residuals=hint.down_block_res_samples,
                mid_block_additional_residual=hint.mid_block_res_sample,
            )
            sample = unet.ask(lambda m: m(**given, **extra)).sample  # noqa: B023
        vae.ask(lambda m: m.decode(sample))  # noqa: B023
    control.check_streamed()
    unet.check_streamed()


def test_a_pipeline(judge: Any) -> None:
    unet, vae = judge("sd1_unet"), judge("autoencoder_kl", whole=True)

    def paint(unet: Any, vae: Any) -> torch.Tensor:
        scheduler = d.DDIMScheduler(clip_sample=False)
        pipe = d.StableDiffusionPipeline(vae, None, None, unet, scheduler, None, None, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        torch.manual_seed(0)
        words = dict(prompt_embeds=rand(1, 5, 16), negative_prompt_embeds=rand(1, 5, 16))
        return pipe(**words, num_inference_steps=4, height=16, width=16, output_type="pt").images

    for _ in range(2):
        assert torch.equal(paint(unet.model, vae.model), paint(unet.twin, vae.twin))
    unet.check_streamed()


SWITCHES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "qkv fused": ("sd1_unet", lambda m: m.fuse_qkv_projections()),
    "free u": ("sd1_unet", lambda m: m.enable_freeu(0.9, 0.2, 1.2, 1.4)),
    "more words": ("bert", lambda m: m.resize_token_embeddings(120)),
    "another attention": ("llama", lambda m: m.set_attn_implementation("eager")),
}  # fmt: skip


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_feature_is_switched_on_between_forwards(judge: Any, switch: str) -> None:
    name, change = SWITCHES[switch]
    judged = judge(name)
    judged.run(CASES[name].inputs)
    for model in (judged.model, judged.twin):
        torch.manual_seed(5)
        change(model)
    judged.run(CASES[name].inputs, 5)


@pytest.mark.parametrize("name", ["sd1_unet", "gpt2", "autoencoder_oobleck"])
def test_saved_while_it_streams(judge: Any, name: str, tmp_path: Path) -> None:
    judged = judge(name)
    judged.run(CASES[name].inputs)
    judged.model.save_pretrained(tmp_path)
    loaded, inputs = type(judged.model).from_pretrained(tmp_path).eval(), CASES[name].draw(0)
    assert same(loaded(**inputs), judged.twin(**inputs))
    judged.run(CASES[name].inputs)

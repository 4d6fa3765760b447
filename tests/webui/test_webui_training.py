"""Training through the API, which imports the trainings by name before a model is toggled: stock's weights."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from real_webui import SMALL, RealWebui, gradient_png
from test_webui_hypernetworks import attention_sizes

INSIDE = ("training",)
TRAINING = {
    "id_task": "", "learn_rate": "0.01", "batch_size": 1, "gradient_step": 1, "training_width": 64,
    "training_height": 64, "varsize": False, "steps": 3, "clip_grad_mode": "disabled", "clip_grad_value": "0.1",
    "shuffle_tags": False, "tag_drop_out": 0, "latent_sampling_method": "once", "use_weight": False,
    "create_image_every": 2, "template_filename": "style_filewords.txt", "preview_from_txt2img": True,
    "preview_prompt": "a cat", "preview_negative_prompt": "", "preview_steps": 1, "preview_sampler_name": "Euler",
    "preview_cfg_scale": 7, "preview_seed": 1, "preview_width": 64, "preview_height": 64,
}  # fmt: skip


class Lessons:
    """Both trainings, on two pictures."""

    def __init__(self, folder: Path) -> None:
        self.pictures, self.hypernetworks, self.logs = folder / "pictures", folder / "hypernetworks", folder / "logs"
        self.pictures.mkdir()
        self.hypernetworks.mkdir()
        for size in (64, 96):
            (self.pictures / f"grey {size}.png").write_bytes(base64.b64decode(gradient_png(size)))
        # A torch newer than the host's writes pickles that the host's own check does not know.
        self.flags = ("--hypernetwork-dir", str(self.hypernetworks), "--disable-safe-unpickle")

    def take(self, server: RealWebui, **always: Any) -> dict[str, str]:
        """Hashes by name: an image, what is trained after it, and the image again."""
        sizes = attention_sizes(server)
        if not sizes:
            pytest.skip("no attention that a hypernetwork knows")
        found = {"before": server.image(**SMALL, **always)}
        self._train(server, "hypernetwork", {
            "enable_sizes": sizes, "layer_structure": [1, 2, 1], "activation_func": "relu",
            "weight_init": "XavierNormal"}, {"save_hypernetwork_every": 0})  # fmt: skip
        found["hypernetwork"] = digest(self.hypernetworks / "newhypernetwork.pt")
        found["between"] = server.image(**SMALL, **always)
        self._train(server, "embedding", {"num_vectors_per_token": 2, "init_text": "grey"}, {
            "save_embedding_every": 0, "save_image_with_stored_embedding": False})  # fmt: skip
        embedding = server.data_dir / "embeddings" / "newembedding.pt"
        found["embedding"] = digest(embedding)
        embedding.unlink()  # the host would not read one of the same name
        return found | {"after": server.image(**SMALL, **always)}

    def _train(self, server: RealWebui, kind: str, made: dict[str, Any], more: dict[str, Any]) -> None:
        server.call("/probe/seed", {})
        server.call(f"/sdapi/v1/create/{kind}", {"name": f"new{kind}", "overwrite_old": True, **made})
        answer = server.call(
            f"/sdapi/v1/train/{kind}",
            TRAINING
            | more
            | {f"{kind}_name": f"new{kind}", "data_root": str(self.pictures), "log_directory": str(self.logs)},
        )
        assert answer["info"].endswith("error: None"), answer


def digest(file: Path) -> str:
    """Of all tensors in a file."""
    found, todo = hashlib.sha256(), [torch.load(file)]
    while todo:
        value = todo.pop()
        if isinstance(value, torch.Tensor):
            found.update(value.detach().numpy().tobytes())
        elif isinstance(value, (dict, list, tuple)):
            todo += value.values() if isinstance(value, dict) else value
    return found.hexdigest()[:16]


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    return Lessons(tmp_path_factory.mktemp("lessons"))


@pytest.fixture(scope="module")
def expected(lessons, real_webui):
    server = real_webui(*lessons.flags, extension=False, inside=INSIDE)
    found = lessons.take(server)
    assert lessons.take(server) == found, "nothing is left to chance"
    assert found["before"] == found["between"] == found["after"]
    server.check_quiet()
    return found


@pytest.mark.parametrize("flag", [(), ("--async-lowvram",)], ids=["toggled", "flag"])
def test_trained_after_a_streamed_image(expected, lessons, real_webui, flag):
    server = real_webui(*flag, *lessons.flags, inside=INSIDE)
    for _ in range(2):
        assert lessons.take(server, script=[True, 16]) == expected
        assert server.unet()["streamed_units"] > 0
    server.check_quiet()

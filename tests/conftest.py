"""Real molecules and a small untrained model, shared by the tests."""

import gc
from functools import partial

import huggingface_hub
import hypothesis
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import disable_progress_bars
from local_hub import LocalHub

from dataset_scripts.bundled import load_bundled
from dataset_scripts.collator import collate, example_from_row
from dataset_scripts.schema import B3LYP_6_31GD
from modeling_pcbridge import PCBridgeConfig, PCBridgeModel, PCBridgeProcessor, pair_layout
from modeling_pcbridge.pair_layout import NeighbourLists

disable_progress_bars()
# `pytest -n` gives every core a process of its own.
torch.set_num_threads(1)
# The same examples every time, however busy the machine is.
hypothesis.settings.register_profile(
    "pcbridge", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("pcbridge")

# Of the stand-in hub: a token and whose it is.
TOKENS = {"hf_mine": "me", "hf_theirs": "someone"}
# With one stereo mark, several, a stereo double bond, none, a ring, charges, and three atoms only.
SMILES = ["C[C@H](N)C(=O)O", "C[C@@H]1O[C@H]1C", "F/C=C\\F", "CCO", "c1ccoc1", "[NH3+]CC(=O)[O-]", "O"]


def pytest_collection_finish():
    """A collection of garbage, of which every training makes some, need not look at what is imported."""
    gc.freeze()


def small_model(seed: int = 0, dtype: torch.dtype = torch.float64, **overrides) -> PCBridgeModel:
    """An untrained model whose outputs are large enough to see errors in."""
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "vector_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_gaussians": 16,
        "initializer_range": 0.2,
    }
    return PCBridgeModel(PCBridgeConfig(**{**sizes, **overrides})).to(dtype).eval()


def random_positions(graph: dict, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Spread-out random coordinates, zero on padding."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*graph["atomic_numbers"].shape, 3)
    return 1.5 * torch.randn(shape, generator=generator, dtype=dtype) * graph["atom_mask"].unsqueeze(-1)


@pytest.fixture(scope="session")
def processor() -> PCBridgeProcessor:
    return PCBridgeProcessor()


@pytest.fixture
def graph(processor) -> dict:
    return dict(processor(SMILES))


# Fields of the config: E that sees all atoms, and E within a cutoff, shorter than the molecules, with torsion terms.
FORMS = {"global": {}, "extensive": {"attention_cutoff": 4.0, "torsion_terms": True, "out_of_plane_terms": True}}


@pytest.fixture(params=list(FORMS))
def model(request) -> PCBridgeModel:
    return small_model(**FORMS[request.param])


def bundled_examples(name: str, split: str, count: int, only_labelled: bool = False):
    """The first `count` examples of the bundled data."""
    examples = []
    for row in load_bundled(name, split):
        example = example_from_row(row, [B3LYP_6_31GD])
        if example.is_labelled or not only_labelled:
            examples.append(example)
        if len(examples) == count:
            break
    return examples


@pytest.fixture
def use_layout(monkeypatch):
    """Makes models with a cutoff use a layout of pairs whatever the size of a molecule is."""

    def choose(layout: type) -> None:
        monkeypatch.setattr(pair_layout, "FEWEST_ATOMS_FOR_LISTS", 0 if layout is NeighbourLists else 10**9)

    return choose


@pytest.fixture
def fresh_accelerate():
    """accelerate keeps the precision of the first run of a process; forget it, and afterwards again."""
    forget = partial(AcceleratorState._reset_state, reset_partial_state=True)
    forget()
    yield forget
    forget()


@pytest.fixture(scope="module")
def batch() -> dict:
    """Four rows with both labels, four with a structure only, four with labels only."""
    return collate(
        bundled_examples("pm6", "train", 4, only_labelled=True)
        + bundled_examples("pm6", "train", 620)[-4:]
        + bundled_examples("pm6_displaced", "train", 4)
    )


@pytest.fixture
def hub(monkeypatch):
    """A stand-in hub on this machine, with the token of `me`."""
    with LocalHub(TOKENS) as hub:
        # Both are read from the environment at import; large files go by LFS, as to a hub without Xet.
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        yield hub

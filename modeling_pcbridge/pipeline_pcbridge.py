"""`transformers.pipeline` for molecules: from SMILES to structures, energies and forces, in batches."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .processing_pcbridge import is_single

TASK = "molecular-structure"
# What a config.json says of it, for `pipeline` with trust_remote_code.
CUSTOM_PIPELINES = {TASK: {"impl": "pipeline_pcbridge.PCBridgePipeline", "pt": ["AutoModel"]}}


class PCBridgePipeline(Pipeline):
    """Predicts structures and evaluates their energies and forces.

        pipe = pipeline("molecular-structure", model=path, trust_remote_code=True)
        pipe(["CCO", "c1ccoc1"], batch_size=32, num_samples=5)
        pipe(["CCO", "c1ccoc1"], batch_size=32, method="mean_shift", embed=True)  # RDKit's structures, refined

    Molecules are whatever `PCBridgeProcessor` takes; a list, a generator or a single one. Options of
    `PCBridgeModel.predict_structure`, `embed` of the processor, and `level_of_theory` of energies, forces and
    converged relaxation (by default the model's first), go to the constructor or to the call.

    Returns:
        For each molecule of N atoms and S samples a dictionary of arrays: `atomic_numbers` (N,), `positions`
        (S, N, 3) in angstrom, `energy` (S,) in eV, `forces` (S, N, 3) in eV/angstrom, `is_sound` (S,) bool, and
        `faults`, for each sample a list of what is wrong with its structure (see `StructureChecks`). What is not
        sound is no prediction: leave it out before ranking. `beyond_training` is a list of what about the molecule no
        training molecule had (see `beyond_training`), or None where the model does not know.

    Raises:
        ValueError: as the processor and `predict_structure` do.
    """

    _load_processor = True
    _load_tokenizer = _load_feature_extractor = _load_image_processor = _load_video_processor = False

    def __init__(self, *arguments, device=None, **options):
        if device is None and torch.backends.mps.is_available():
            device = "cpu"  # Apple's GPUs have no float64, in which reference energies are subtracted
        super().__init__(*arguments, device=device, **options)

    def __call__(self, molecules, **options):
        if isinstance(molecules, (list, tuple)) and not molecules:
            return []
        if not is_single(molecules) and not isinstance(molecules, Iterator):
            molecules = list(molecules)  # also a column of a table
        return super().__call__(molecules, **options)

    def _sanitize_parameters(self, **options) -> tuple[dict, dict, dict]:
        of_processor = {"embed": options.pop("embed")} if "embed" in options else {}
        return of_processor, options, {}

    def preprocess(self, molecules, embed: bool = False) -> dict[str, Tensor]:
        return dict(self.processor(molecules, embed=embed))

    def _forward(self, inputs: dict[str, Tensor], level_of_theory: str | None = None, **options) -> dict[str, Tensor]:
        options.setdefault("relaxation_level", level_of_theory)
        structures = self.model.predict_structure(**inputs, **options)
        shape = structures.positions.shape[:2]  # molecules, samples
        graphs = {key: tensor.repeat_interleave(shape[1], 0) for key, tensor in inputs.items() if key != "positions"}
        result = self.model.predict_energy(
            **graphs, positions=structures.positions.flatten(0, 1), level_of_theory=level_of_theory
        )
        return {
            "atomic_numbers": inputs["atomic_numbers"],
            "positions": structures.positions,
            "energy": result.energy.unflatten(0, shape),
            "forces": result.forces.unflatten(0, shape),
            "is_sound": structures.is_sound,
            "faults": structures.faults,
            "beyond_training": structures.beyond_training,
        }

    def postprocess(self, outputs: dict[str, Tensor]) -> list[dict[str, np.ndarray]]:
        faults, beyond = outputs.pop("faults"), outputs.pop("beyond_training")
        arrays = {key: tensor.numpy() for key, tensor in outputs.items()}
        molecules = []
        for row, num_atoms in enumerate((arrays["atomic_numbers"] > 0).sum(-1)):
            molecule = {key: array[row] for key, array in arrays.items()}
            molecule |= {"faults": faults[row], "beyond_training": beyond[row]}
            molecule["atomic_numbers"] = molecule["atomic_numbers"][:num_atoms]
            molecule |= {key: molecule[key][:, :num_atoms] for key in ("positions", "forces")}
            molecules.append(molecule)
        return molecules

    def get_iterator(self, inputs, num_workers, batch_size, *parameters) -> Iterator[dict[str, np.ndarray]]:
        """Batches are padded by the processor: transformers' own collation knows no pair tensors."""
        molecules = iter(inputs)
        while batch := list(islice(molecules, batch_size)):
            yield from super().run_single(batch, *parameters)

    def run_single(self, inputs, *parameters) -> dict[str, np.ndarray]:
        return super().run_single([inputs], *parameters)[0]


PIPELINE_REGISTRY.register_pipeline(TASK, PCBridgePipeline, pt_model=AutoModel)

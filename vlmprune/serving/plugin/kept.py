"""Models of vLLM that are given an image as its kept rows, with the places that these had among all rows.

The hooks into vLLM are private ones, read in 0.32. Shapes: K kept tokens of an image, V all of them, N tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import DictEmbeddingItems, MultiModalDataParser
from vllm.multimodal.processing import PromptReplacement

from ..payload import GRID, KEPT, ROWS, VISUAL, BadEmbeddings, Bounds, check_images
from .decode import expect

# How the fields of several images lie in a batch: one entry per image, of different lengths.
_FIELDS = {
    ROWS: MultiModalFieldConfig.batched("image"),
    **{name: MultiModalFieldConfig.batched("image", keep_on_cpu=True) for name in (KEPT, VISUAL, GRID)},
}


def kept_model(model: Any) -> Any:
    """A model of vLLM that also takes kept rows with their places, registered with its processor.

    Everything else is read by the classes that `model` is registered with.
    """
    own = model._processor_factory
    info: Any = own.info
    processor: Any = own.processor

    class Info(info):
        def get_data_parser(self) -> Any:
            parser, config = super().get_data_parser(), self.ctx.model_config
            vision = self.get_hf_config().vision_config
            bounds = None
            if parser.expected_hidden_size is not None:  # None where the engine takes no embeddings
                # Rows hold DeepStack's levels behind the embedding.
                parser.expected_hidden_size *= 1 + len(getattr(vision, "deepstack_visual_indexes", ()))
                longest = int(getattr(config.hf_text_config, "max_position_embeddings", 0))
                bounds = Bounds(
                    parser.expected_hidden_size,
                    int(self.get_max_image_tokens()),
                    max(longest, config.max_model_len),
                    getattr(vision, "spatial_merge_size", None),
                )
                expect(bounds)
            parser.__class__ = _kept_parser(type(parser), bounds)
            return parser

    class Processor(processor):
        def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
            return _FIELDS if KEPT in hf_inputs else super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)

        def _get_prompt_updates(
            self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
        ) -> Sequence[Any]:
            images = mm_items.get("image")
            if not (isinstance(images, DictEmbeddingItems) and KEPT in images.get(0)):
                return super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
            placeholder = self.info.get_hf_config().image_token_id
            # The prompt's one placeholder of an image becomes as many as it has rows.
            return [PromptReplacement("image", [placeholder], lambda n: [placeholder] * len(images.get(n)[ROWS]))]

    @MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=own.dummy_inputs)
    class Kept(model):
        def embed_multimodal(self, **kwargs: Any) -> Any:
            return tuple(kwargs[ROWS]) if KEPT in kwargs else super().embed_multimodal(**kwargs)

    return Kept


def _kept_parser(parser: Any, bounds: Bounds | None) -> Any:
    """The family's parser; it checks embeddings of images, and takes no others: bad ones must not reach the engine."""

    class Parser(parser):
        embedding_fields: ClassVar = {
            "image": {ROWS: "values", KEPT: "metadata", VISUAL: "metadata"}, **parser.embedding_fields
        }  # fmt: skip

        def _parse_image_data(self, data: Any) -> Any:
            # Whatever vLLM takes for embeddings, and every tensor but a batch of pixels.
            named, rows = isinstance(data, Mapping), isinstance(data, Tensor) and data.dim() != 4
            if not (named or rows or MultiModalDataParser.is_embeddings(data)):
                return super()._parse_image_data(data)
            if bounds is None:
                raise BadEmbeddings("This engine takes no image embeddings; start it with --enable-mm-embeds.")
            whole = not named or bounds.merge is not None
            check_images(_columns(data if named else {ROWS: data}), bounds, whole)
            if not named or KEPT not in data:
                return super()._parse_image_data(data)
            return DictEmbeddingItems(
                data, modality="image", required_fields=set(data), fields_factory=lambda _: _FIELDS
            )

        def _parse_video_data(self, data: Any) -> Any:
            if isinstance(data, Mapping) or self.is_embeddings(data):
                raise BadEmbeddings("This engine takes no embeddings of videos; send the frames.")
            return super()._parse_video_data(data)

    return Parser


def _columns(data: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """The fields of each image, from one sequence or tensor per field.

    Raises:
        BadEmbeddings: a field is neither, or they are of different numbers of images.
    """
    for name, column in data.items():
        if not isinstance(column, list | tuple | Tensor) or (isinstance(column, Tensor) and column.dim() == 0):
            raise BadEmbeddings(f"The field {name!r:.40} of the images is not a list of tensors; send one per image.")
    lengths = sorted({len(column) for column in data.values()})
    if len(lengths) != 1 or not lengths[0]:
        raise BadEmbeddings(f"The fields of the images have {lengths} entries; send one for every image.")
    return [{name: column[number] for name, column in data.items()} for number in range(lengths[0])]

"""The one table of tasks. A task is one file and one line here."""

from __future__ import annotations

from vlmprune.errors import VlmpruneError, nearest

from .ai2d import AI2D
from .base import Task
from .captions import DetailCaps, DIDBench
from .chartqa import ChartQA
from .clips import Clips
from .docvqa import DocVQA
from .earthvqa import EarthVQA
from .easy_vqa import EasyVQA
from .ego_schema import EgoSchema
from .gqa import GQA
from .long_video_bench import LongVideoBench
from .mlvu import MLVU
from .mmbench import MMBench
from .mme import MME
from .mmstar import MMStar
from .mmvet import MMVet
from .mvbench import MVBench
from .next_qa import NExTQA
from .ocrbench import OCRBench
from .pope import Pope
from .refcoco import RefCOCO, RefCOCOg, RefCOCOPlus
from .scenes import Photographs, PhotographsWide, Scenes, ScenesValidation, ScenesWide
from .scienceqa import ScienceQA
from .seed import SeedImage
from .textvqa import TextVQA
from .video_mme import VideoMME
from .vizwiz import VizWiz
from .vqav2 import VQAv2

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        VQAv2,
        GQA,
        VizWiz,
        TextVQA,
        ScienceQA,
        Pope,
        MME,
        MMBench,
        SeedImage,
        MMStar,
        MMVet,
        OCRBench,
        ChartQA,
        DocVQA,
        AI2D,
        RefCOCO,
        RefCOCOPlus,
        RefCOCOg,
        EarthVQA,
        EasyVQA,
        Scenes,
        ScenesValidation,
        Photographs,
        ScenesWide,
        PhotographsWide,
        Clips,
        DetailCaps,
        DIDBench,
        VideoMME,
        MVBench,
        NExTQA,
        LongVideoBench,
        MLVU,
        EgoSchema,
    )
}


def task_class(name: str) -> type[Task]:
    """The task of this name.

    Raises:
        VlmpruneError: there is none.
    """
    if name not in TASKS:
        raise VlmpruneError(f"There is no task {name!r}; {nearest(name, TASKS)}")
    return TASKS[name]

"""The data sets: where each is looked for, how it is read, what it should hold, where to get it.

Addresses, layouts and numbers are taken from public readers of the same data (torchreid, fastreid, mmpretrain,
TensorFlow Datasets; compared in November 2026). The archives themselves were not at hand, and pages move: MSMT17's and
Cars196's first ones are gone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hap2s_jax.data.readers import cuhk03, hf, own, person, retrieval
from hap2s_jax.data.readers.files import Parts, find_root

_REID = ("query_gallery",)


@dataclass(frozen=True)
class Entry:
    """One data set.

    Attributes:
      name: as in a config.
      title: as in the literature.
      url: the page to get it from.
      licence: what its makers ask.
      read: (root, **options) -> its parts; None where the data is shipped with the package.
      folders: names of its folder below the data directory, as people have it.
      markers: what a root must have in it; several alternatives, any of which will do.
      protocols: how it is judged, see `Dataset`.
      counts: number of images in train, test, query, gallery and of training classes ("classes"); each one number
        or several, of which any is right.
      tfds: name of a TensorFlow Datasets builder that serves too; an option may stand in it, in braces.
      aliases: other names that people give it.
      is_own: whether it is the users' own, of any split, and lies where data_dir says and nowhere else.
    """

    name: str
    title: str
    url: str
    licence: str
    read: Callable[..., Parts] | None
    folders: tuple[str, ...] = ()
    markers: tuple[tuple[str, ...], ...] = ()
    protocols: tuple[str, ...] = ("class",)
    counts: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    tfds: str | None = None
    aliases: tuple[str, ...] = ()
    is_own: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Its options with defaults; a config gives them as data.options."""
        if self.read is None:
            return {}
        parameters = inspect.signature(self.read).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "seed"}

    def find(self, bases: list[Path]) -> Path | None:
        """The data set's root below one of these directories, or None."""
        for markers in self.markers:
            root = find_root(bases, self.folders, markers)
            if root is not None:
                return root
        return None

    def where_to_get(self, bases: list[Path]) -> str:
        """One sentence for someone who lacks the data."""
        expected = " and ".join(self.markers[0]) if self.markers else ""
        looked = ", ".join(str(base) for base in bases)
        get = f"get it from {self.url} ({self.licence}) and " if self.url else ""
        return (
            f"{self.title} was not found below {looked}; {get}put it so that "
            f"{bases[0] / self.folders[0]}/ holds {expected}, or name another place with --config.data.data_dir"
        )


_BOXES_AND_QUERY = (person.TRAIN, person.QUERY, person.GALLERY)

_ENTRIES = (
    Entry(
        "emoji",
        "Emoji (bundled)",
        "shipped with hap2s_jax",
        "Apache-2.0, MIT and CC BY 4.0 by icon set, see NOTICE",
        None,
        protocols=("class", "query_gallery"),
    ),
    Entry(
        "cub200_2011",
        "CUB-200-2011",
        "https://www.vision.caltech.edu/datasets/cub_200_2011/",
        "non-commercial research",
        retrieval.read_cub,
        folders=("CUB_200_2011", "cub200_2011/CUB_200_2011", "cub200_2011", "cub/CUB_200_2011", "cub"),
        markers=(("images", "images.txt", "image_class_labels.txt"),),
        counts={"train": 5864, "test": 5924, "classes": 100},
        tfds="caltech_birds2011",
        aliases=("cub", "cub200", "caltech_birds2011"),
    ),
    Entry(
        "cars196",
        "Cars196 (Stanford Cars)",
        "https://www.kaggle.com/datasets/eduardo4jesus/stanford-cars-dataset",
        "non-commercial research",
        retrieval.read_cars,
        folders=("cars196", "stanford_cars", "cars", "Cars196"),
        markers=(("car_ims", "cars_annos.mat"), ("cars_train", "cars_test")),
        counts={"train": 8054, "test": 8131, "classes": 98},
        tfds="cars196",
        aliases=("cars", "stanford_cars"),
    ),
    Entry(
        "sop",
        "Stanford Online Products",
        "https://cvgl.stanford.edu/projects/lifted_struct/",
        "research",
        retrieval.read_sop,
        folders=("Stanford_Online_Products", "sop/Stanford_Online_Products", "sop", "SOP"),
        markers=(("Ebay_train.txt", "Ebay_test.txt"),),
        counts={"train": 59551, "test": 60502, "classes": 11318},
        tfds="stanford_online_products",
        aliases=("stanford_online_products",),
    ),
    Entry(
        "inshop",
        "In-shop Clothes Retrieval (DeepFashion)",
        "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html",
        "non-commercial research, password by agreement",
        retrieval.read_inshop,
        folders=(
            "inshop",
            "In-shop Clothes Retrieval Benchmark",
            "In_shop_Clothes_Retrieval_Benchmark",
            "in-shop",
        ),
        markers=(
            ("list_eval_partition.txt", "img"),
            ("Eval/list_eval_partition.txt", "Img/img"),
            ("Eval/list_eval_partition.txt", "img"),
            ("list_eval_partition.txt", "Img/img"),
        ),
        protocols=("query_gallery", "in_shop"),
        counts={"train": 25882, "query": 14218, "gallery": 12612, "classes": 3997},
        tfds="inshop",
        aliases=("in_shop", "deepfashion_inshop"),
    ),
    Entry(
        "market1501",
        "Market-1501",
        "https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html",
        "research",
        person.read_market1501,
        folders=(
            "market1501/Market-1501-v15.09.15",
            "Market-1501-v15.09.15",
            "market1501",
            "Market-1501",
            "market-1501",
        ),
        markers=(_BOXES_AND_QUERY,),
        protocols=_REID,
        counts={"train": 12936, "query": 3368, "gallery": (15913, 15912), "classes": 751},
        tfds="market1501",
        aliases=("market", "market-1501"),
    ),
    Entry(
        "dukemtmc",
        "DukeMTMC-reID",
        "https://exposing.ai/duke_mtmc/",
        "withdrawn by its makers in 2019; use what your institution allows",
        person.read_dukemtmc,
        folders=(
            "dukemtmc/DukeMTMC-reID",
            "DukeMTMC-reID",
            "dukemtmc-reid/DukeMTMC-reID",
            "dukemtmc",
            "dukemtmc-reid",
        ),
        markers=(_BOXES_AND_QUERY,),
        protocols=_REID,
        counts={"train": 16522, "query": 2228, "gallery": 17661, "classes": 702},
        tfds="dukemtmc",
        aliases=("duke", "dukemtmcreid", "dukemtmc-reid"),
    ),
    Entry(
        "cuhk03",
        "CUHK03",
        "https://www.ee.cuhk.edu.hk/~xgwang/CUHK_identification.html",
        "research",
        cuhk03.read_cuhk03,
        folders=(
            "cuhk03_release",
            "cuhk03/cuhk03_release",
            "cuhk03-np",
            "cuhk03/cuhk03-np",
            "cuhk03",
            "CUHK03",
            "cuhk03/archive",
        ),
        markers=(
            (cuhk03.MAT,),
            (f"detected/{person.TRAIN}",),
            (f"labeled/{person.TRAIN}",),
            *((f"{cuhk03.IMAGES}{detection}",) for detection in cuhk03.DETECTIONS),
        ),
        protocols=_REID,
        counts={"train": (7365, 7368), "query": 1400, "gallery": (5332, 5328), "classes": 767},
        tfds="cuhk03/{detection}",
        aliases=("cuhk03-np", "cuhk03_np"),
    ),
    Entry(
        "msmt17",
        "MSMT17",
        "https://www.pkuvmc.com/dataset.html",
        "research, by release agreement; ask its makers by mail where the page is gone",
        person.read_msmt17,
        folders=("MSMT17_V1", "MSMT17_V2", "msmt17/MSMT17_V1", "msmt17/MSMT17_V2", "msmt17", "MSMT17"),
        markers=(("list_train.txt", "list_query.txt", "list_gallery.txt"),),
        protocols=_REID,
        # With and without the 2,373 images of list_val.txt.
        counts={"train": (32621, 30248), "query": 11659, "gallery": 82161, "classes": 1041},
        tfds="msmt17",
        aliases=("msmt", "msmt17_v1", "msmt17_v2"),
    ),
    Entry(
        "veri776",
        "VeRi-776",
        "https://vehiclereid.github.io/VeRi/",
        "non-commercial research; ask its makers by mail",
        person.read_veri776,
        folders=("VeRi", "veri", "VeRi-776", "VeRi_776", "VeRi776", "veri776", "veri-776", "veri776/VeRi"),
        markers=(person.VEHICLES,),
        protocols=_REID,
        # Readers of the archive count 575 or 576 vehicles to train on.
        counts={"train": 37778, "query": 1678, "gallery": 11579, "classes": (575, 576)},
        aliases=("veri", "veri-776", "veri_776"),
    ),
    Entry(
        "hf",
        "A data set of the Hugging Face hub, or of its formats",
        "https://huggingface.co/datasets",
        "as its page says",
        hf.read_hf,
        aliases=("huggingface",),
        is_own=True,
    ),
    Entry(
        "folder",
        "Your own images",
        "your own disk",
        "yours",
        own.read_folder,
        aliases=("csv", "market_layout", "market-layout"),
        is_own=True,
    ),
)

ENTRIES: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}

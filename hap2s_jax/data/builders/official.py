"""TFDS builders of the benchmarks that TFDS lacks, from their official folders.

    tfds.builder("market1501").download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir="/data"))

Nothing is downloaded and nothing unpacked: each set is behind an agreement or a form, and `manual_dir` must hold
its extracted folder, as `python -m hap2s_jax.check_data` looks for it. Prepared data is one thing to copy to
other machines and buckets; for training at home the folder itself will do.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from hap2s_jax.data import registry
from hap2s_jax.data.pixels import decode_whole
from hap2s_jax.data.readers.files import Parts
from hap2s_jax.data.source import Source
from hap2s_jax.errors import UserError

SPLITS = ("train", "query", "gallery")
_LOG = logging.getLogger(__name__)


def _instructions(name: str) -> str:
    """The instructions that TFDS shows where the data is missing."""
    entry = registry.entry(name)
    return (
        f"Get {entry.title} from {entry.url} ({entry.licence}) and extract it in manual_dir, "
        f"to {entry.folders[0]}/"
    )


class _OfficialBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The splits train, query and gallery of one entry of the registry.

    Every example has the image, the number of its identity (0 to N - 1 over training, then on over test), its
    name, the camera from 0 (-1 where none is known) and where the image came from.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Initial release."}
    CITATION: ClassVar[str] = ""

    def _info(self) -> tfds.core.DatasetInfo:
        entry = registry.entry(self.name)
        counts = ", ".join(f"{part} {number}" for part, number in entry.counts.items())
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "identity": tfds.features.Scalar(np.int64),
            "identity_name": tfds.features.Text(),
            "camera": tfds.features.Scalar(np.int64),
            "origin": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{entry.title}, {entry.url}. Published numbers: {counts}.",
            features=tfds.features.FeaturesDict(features),
            citation=self.CITATION,
            license=entry.licence,
        )

    def _options(self) -> dict[str, Any]:
        return {}

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        entry = registry.entry(self.name)
        bases = [Path(dl_manager.manual_dir)]
        root = entry.find(bases)
        if root is None:
            raise UserError(entry.where_to_get(bases))
        parts = registry.read_parts(entry, root, self._options())
        for line in registry.count_warnings(entry, parts):
            _LOG.warning("%s", line)
        if parts.query is None or parts.gallery is None:
            raise ValueError(f"{entry.name}: a set without queries has a builder in TFDS itself")
        offset = len(parts.train.class_names)
        return {
            "train": _examples(parts.train, np.arange(len(parts.train)), 0),
            "query": _examples(parts.test, parts.query, offset),
            "gallery": _examples(parts.test, parts.gallery, offset),
        }

    def _generate_examples(self, parts: Parts) -> Iterator[tuple[int, dict[str, Any]]]:
        raise NotImplementedError("the splits bring their own generators")


def _examples(source: Source, indices: np.ndarray, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
    for index in indices.tolist():
        data = source.read(index)
        label = int(source.labels[index])
        example = {
            # cuhk-03.mat holds raw pixels; as PNG they take a third of the space.
            "image": decode_whole(data) if data.startswith(b"BM") else io.BytesIO(data),
            "identity": label + offset,
            "identity_name": source.class_names[label],
            "camera": -1 if source.cameras is None else int(source.cameras[index]),
            "origin": source.describe(index),
        }
        yield index, example


class Market1501(_OfficialBuilder):
    """Market-1501."""

    name = "market1501"
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions("market1501")
    CITATION: ClassVar[str] = """\
@inproceedings{zheng2015scalable,
  title = {Scalable Person Re-identification: A Benchmark},
  author = {Zheng, Liang and Shen, Liyue and Tian, Lu and Wang, Shengjin and Wang, Jingdong and Tian, Qi},
  booktitle = {ICCV},
  year = {2015},
}"""


class DukeMTMC(_OfficialBuilder):
    """DukeMTMC-reID."""

    name = "dukemtmc"
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions("dukemtmc")
    CITATION: ClassVar[str] = """\
@inproceedings{zheng2017unlabeled,
  title = {Unlabeled Samples Generated by {GAN} Improve the Person Re-identification Baseline in vitro},
  author = {Zheng, Zhedong and Zheng, Liang and Yang, Yi},
  booktitle = {ICCV},
  year = {2017},
}"""


class CUHK03(_OfficialBuilder):
    """CUHK03, new protocol; a config for each kind of box."""

    name = "cuhk03"
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions("cuhk03")
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="detected", description="boxes by a detector"),
        tfds.core.BuilderConfig(name="labeled", description="boxes drawn by hand"),
    ]
    CITATION: ClassVar[str] = """\
@inproceedings{li2014deepreid,
  title = {{DeepReID}: Deep Filter Pairing Neural Network for Person Re-identification},
  author = {Li, Wei and Zhao, Rui and Xiao, Tong and Wang, Xiaogang},
  booktitle = {CVPR},
  year = {2014},
}
@inproceedings{zhong2017re,
  title = {Re-ranking Person Re-identification with k-reciprocal Encoding},
  author = {Zhong, Zhun and Zheng, Liang and Cao, Donglin and Li, Shaozi},
  booktitle = {CVPR},
  year = {2017},
}"""

    def _options(self) -> dict[str, Any]:
        return {"detection": self.builder_config.name if self.builder_config else "detected"}


class MSMT17(_OfficialBuilder):
    """MSMT17, V1 or V2 as it lies there, without the images of list_val.txt."""

    name = "msmt17"
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions("msmt17")
    CITATION: ClassVar[str] = """\
@inproceedings{wei2018person,
  title = {Person Transfer {GAN} to Bridge Domain Gap for Person Re-Identification},
  author = {Wei, Longhui and Zhang, Shiliang and Gao, Wen and Tian, Qi},
  booktitle = {CVPR},
  year = {2018},
}"""


class InShop(_OfficialBuilder):
    """In-shop Clothes Retrieval of DeepFashion."""

    name = "inshop"
    MANUAL_DOWNLOAD_INSTRUCTIONS = _instructions("inshop")
    CITATION: ClassVar[str] = """\
@inproceedings{liu2016deepfashion,
  title = {{DeepFashion}: Powering Robust Clothes Recognition and Retrieval with Rich Annotations},
  author = {Liu, Ziwei and Luo, Ping and Qiu, Shi and Wang, Xiaogang and Tang, Xiaoou},
  booktitle = {CVPR},
  year = {2016},
}"""

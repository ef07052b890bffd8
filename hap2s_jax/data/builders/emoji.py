"""The bundled emoji set as a TFDS builder: `tfds.load("emoji")` once `hap2s_jax.data.builders` is imported."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from hap2s_jax.data.emoji import CAMERAS, SPLITS, EmojiSource

_DESCRIPTION = """\
Emoji for class-disjoint image retrieval: every class is one emoji, every image one icon set's drawing of it,
64x64 RGB on white, and the camera is the team that drew it. Classes that look alike form families, and a family
is never split: about half the classes are for training, a tenth of those for validation, the rest for testing.
Labels number the classes of all splits together. The artwork is by Google (Noto Emoji, Apache-2.0), Twitter
(Twemoji, CC BY 4.0), Microsoft (Fluent Emoji, MIT), EmojiTwo, originally EmojiOne (CC BY 4.0), and Mozilla
(FxEmojis, CC BY 4.0), rasterised and in part left out; see the NOTICE of hap2s_jax.
"""

_CITATION = """\
@misc{hap2s_jax_emoji,
  title = {Emoji for image retrieval, drawn by Google, Twitter, Microsoft, EmojiOne and Mozilla},
  howpublished = {part of hap2s_jax},
}
"""


class Emoji(tfds.core.GeneratorBasedBuilder):
    """Builder of the bundled emoji set; it reads the package's own archive and downloads nothing."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Initial release."}

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=list(EmojiSource().class_names)),
            "camera": tfds.features.ClassLabel(names=list(CAMERAS)),
            "class_name": tfds.features.Text(),
            "family": tfds.features.Text(),
            "id": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            citation=_CITATION,
            license="Apache-2.0, MIT and CC BY 4.0, by icon set; see the NOTICE of hap2s_jax",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        del dl_manager  # nothing to download
        source = EmojiSource()
        return {split: self._generate_examples(source, split) for split in SPLITS}

    def _generate_examples(self, source: EmojiSource, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for i in source.indices((split,)):
            row = source.rows[i]
            example = {
                "image": io.BytesIO(source.read(i)),
                "label": row["class"],
                "camera": row["camera"],
                "class_name": row["class"],
                "family": row["family"],
                "id": row["file"],
            }
            yield row["file"], example

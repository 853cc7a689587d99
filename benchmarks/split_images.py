"""How many images of a group its circuits are found on: errors on crops of other photographs, of own and other groups.

python benchmarks/split_images.py --images gcompris:FOLDER
"""

import argparse
import tempfile

import convcircuits as cc
from convcircuits.zoo.images import crops, photographs
from convcircuits.zoo.models import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg16_hed")
    parser.add_argument("--feature", default="features.7:73")
    parser.add_argument("--images", default="sample")
    parser.add_argument("--count", type=int, default=1000, help="number of crops")
    parser.add_argument("--size", type=int, default=64, help="their side in pixels")
    parser.add_argument("--most", type=int, nargs="*", default=[32, 64, 128, 256], help="numbers of images of a group")
    given = parser.parse_args()
    loaded, size = load_model(given.model), (given.size, given.size)
    found, _ = photographs(given.images)
    images = crops(found, loaded.preprocess, count=given.count, seed=0, size=size)
    crops_of = [found[n % len(found)].subject for n in range(given.count)]
    feature = loaded.feature(given.feature)
    print("| training images of a group | density | own | others | selectivity |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:  # images are read but once
        for most in (*given.most, None):
            parts = cc.split(
                loaded.model,
                feature,
                images,
                groups=2,
                photographs=crops_of,
                shuffles=0,
                max_images=most,
                checkpoint=folder,
            )
            assert parts.cross is not None
            fitted = parts.cross.provenance["fitted_on"]
            counts = " and ".join(str(one["count"]) for one in fitted.values())
            for one in parts.cross.selectivity:
                interval = f"({one.low:.2f} to {one.high:.2f})"
                print(
                    f"| {counts} | {one.density:.0%} | {one.own:.2f} | {one.others:.2f} | {one.value:.2f} {interval} |"
                )


if __name__ == "__main__":
    main()

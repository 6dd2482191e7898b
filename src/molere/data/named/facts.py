"""Facts about the data sets by name: licence, citation, checksums, where they lie, how a person gets them."""

from collections.abc import Mapping

from molere.data.named.facts_medical import CAMELYON, IWILDCAM, RETINOPATHY, RETINOPATHY_APTOS
from molere.data.named.facts_nature import AIRCRAFT, CARS, CLOTHING1M, PACS, PET
from molere.data.named.factsheet import Facts

_KRIZHEVSKY = 'Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, 2009'
_WEI = 'Wei et al., "Learning with Noisy Labels Revisited: A Study Using Real-World Human Annotations", ICLR 2022'
_HUMAN = "https://raw.githubusercontent.com/UCSC-REAL/cifar-10-100n/main/data"
_NEW = "https://raw.githubusercontent.com/modestyachts/CIFAR-10.1/master/datasets"

_ARCHIVES = "sign in at https://image-net.org/download-images and take ILSVRC2012_img_train.tar (138 GB), "
_UNPACK = (
    _ARCHIVES + "ILSVRC2012_img_val.tar (6.3 GB) and ILSVRC2012_devkit_t12.tar.gz to PATH/imagenet",
    "molere data get imagenet --root PATH unpacks them, by torchvision.datasets.ImageNet",
    "or unpack them yourself: PATH/imagenet/train/WNID/*.JPEG and PATH/imagenet/val/WNID/*.JPEG",
)
_IMAGENET = ("imagenet", "ImageNet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC")
_IMAGENET_TERMS = "for non-commercial research and education only; terms on the page"

FACTS: Mapping[str, Facts] = {
    "digits": Facts(
        title="Handwritten digits of scikit-learn",
        size="1,797 grey images 8 x 8, 10 classes; comes with scikit-learn",
        licence="CC BY 4.0",
        citation='Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998',
        page="https://archive.ics.uci.edu/dataset/80",
    ),
    "fashion-mnist": Facts(
        title="Fashion-MNIST",
        size="60,000 + 10,000 grey images 28 x 28, 10 classes; 30 MB",
        licence="MIT",
        citation='Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning '
        'Algorithms", 2017',
        page="https://github.com/zalandoresearch/fashion-mnist",
        places=("FashionMNIST/raw",),
        holds=tuple(
            f"{part}-{kind}-ubyte|{part}-{kind}-ubyte.gz"
            for part in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
        ),
        md5={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        fetch="FashionMNIST",
    ),
    "cifar10": Facts(
        title="CIFAR-10",
        size="50,000 + 10,000 colour images 32 x 32, 10 classes; 170 MB",
        licence="none stated",
        citation=_KRIZHEVSKY,
        page="https://www.cs.toronto.edu/~kriz/cifar.html",
        places=("cifar-10-batches-py",),
        holds=("|".join(f"data_batch_{k}" for k in range(1, 6)), "test_batch"),
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        fetch="CIFAR10",
        validation="5,000 of 50,000",
    ),
    "cifar100": Facts(
        title="CIFAR-100",
        size="50,000 + 10,000 colour images 32 x 32, 100 classes; 169 MB",
        licence="none stated",
        citation=_KRIZHEVSKY,
        page="https://www.cs.toronto.edu/~kriz/cifar.html",
        places=("cifar-100-python",),
        holds=("train", "test"),
        md5={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        fetch="CIFAR100",
        validation="5,000 of 50,000",
    ),
    "cifar10n": Facts(
        title="CIFAR-10N: human labels for CIFAR-10",
        size="six labels of each of the 50,000 training images; 2.4 MB",
        licence="CC BY-NC 4.0",
        citation=_WEI,
        page="http://noisylabels.com",
        places=("cifar-n", "cifar-10-100n/data", "cifar-10-100n", "CIFAR-N", "data", "."),
        holds=("CIFAR-10_human.pt",),
        md5={"CIFAR-10_human.pt": "96644db5574813cae939af5f7f2a0aec"},
        needs=("cifar10",),
        fetch="files",
        urls={
            "cifar-n/CIFAR-10_human.pt": (f"{_HUMAN}/CIFAR-10_human.pt", "96644db5574813cae939af5f7f2a0aec"),
        },
    ),
    "cifar100n": Facts(
        title="CIFAR-100N: human labels for CIFAR-100",
        size="a fine and a coarse label of each of the 50,000 training images; 1 MB",
        licence="CC BY-NC 4.0",
        citation=_WEI,
        page="http://noisylabels.com",
        places=("cifar-n", "cifar-10-100n/data", "cifar-10-100n", "CIFAR-N", "data", "."),
        holds=("CIFAR-100_human.pt",),
        md5={"CIFAR-100_human.pt": "a67b45c1d7992051865b5c755bd68bb1"},
        needs=("cifar100",),
        fetch="files",
        urls={
            "cifar-n/CIFAR-100_human.pt": (f"{_HUMAN}/CIFAR-100_human.pt", "a67b45c1d7992051865b5c755bd68bb1"),
        },
    ),
    "cifar10.1": Facts(
        title="CIFAR-10.1: a second test set for CIFAR-10",
        size="2,000 colour images 32 x 32 (version 6), as a test beside CIFAR-10's; 6 MB",
        licence="MIT",
        citation='Recht et al., "Do ImageNet Classifiers Generalize to ImageNet?", ICML 2019',
        page="https://github.com/modestyachts/CIFAR-10.1",
        places=("CIFAR-10.1", "CIFAR-10.1/datasets", "cifar10.1", "cifar-10.1", "."),
        holds=("cifar10.1_v6_data.npy", "cifar10.1_v6_labels.npy"),
        md5={
            "cifar10.1_v6_data.npy": "4fcae82cb1326aec9ed1dc1fc62345b8",
            "cifar10.1_v6_labels.npy": "09a97fb7c430502fcbd69d95093a3f85",
        },
        needs=("cifar10",),
        fetch="files",
        urls={
            "CIFAR-10.1/cifar10.1_v6_data.npy": (f"{_NEW}/cifar10.1_v6_data.npy", "4fcae82cb1326aec9ed1dc1fc62345b8"),
            "CIFAR-10.1/cifar10.1_v6_labels.npy": (
                f"{_NEW}/cifar10.1_v6_labels.npy",
                "09a97fb7c430502fcbd69d95093a3f85",
            ),
        },
    ),
    "imagenet": Facts(
        title="ImageNet-1K (ILSVRC 2012)",
        size="1,281,167 + 50,000 images, 1,000 classes; 150 GB",
        licence=_IMAGENET_TERMS,
        citation='Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015',
        page="https://image-net.org",
        places=(*_IMAGENET, "."),
        holds=("train/n01440764", "val"),
        fetch="ImageNet",
        steps=_UNPACK,
        validation="taken from the whole training set",
    ),
    "imagenet-100": Facts(
        title="ImageNet-100: 100 classes of ImageNet-1K",
        size="126,689 + 5,000 images, 100 classes; 13 GB",
        licence=_IMAGENET_TERMS,
        citation='Tian, Krishnan and Isola, "Contrastive Multiview Coding", ECCV 2020',
        page="https://github.com/HobbitLong/CMC",
        places=("imagenet-100", "imagenet100", "ImageNet100", *_IMAGENET),
        holds=("train/n02869837", "val"),
        steps=("get imagenet: its folder is used, the 100 classes are chosen from it", *_UNPACK),
        validation="13,000 of 130,000",
    ),
    "imagenet-a": Facts(
        title="ImageNet-A: natural adversarial examples",
        size="7,500 images of 200 of ImageNet's classes, as a test beside ImageNet's; 688 MB",
        licence="MIT (the collection)",
        citation='Hendrycks et al., "Natural Adversarial Examples", CVPR 2021',
        page="https://github.com/hendrycks/natural-adv-examples",
        places=("imagenet-a", "ImageNet-A"),
        holds=("n01498041",),
        needs=("imagenet",),
        fetch="files",
        urls={
            "imagenet-a.tar": (
                "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
                "c3e55429088dc681f30d81f4726b6595",
            )
        },
    ),
    "imagenet-r": Facts(
        title="ImageNet-R: renditions",
        size="30,000 images of 200 of ImageNet's classes, as a test beside ImageNet's; 2.2 GB",
        licence="MIT (the collection)",
        citation='Hendrycks et al., "The Many Faces of Robustness: A Critical Analysis of Out-of-Distribution '
        'Generalization", ICCV 2021',
        page="https://github.com/hendrycks/imagenet-r",
        places=("imagenet-r", "ImageNet-R"),
        holds=("n01443537",),
        needs=("imagenet",),
        fetch="files",
        urls={
            "imagenet-r.tar": (
                "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
                "a61312130a589d0ca1a8fca1f2bd3337",
            )
        },
    ),
    "aircraft": AIRCRAFT,
    "cars": CARS,
    "pet": PET,
    "clothing1m": CLOTHING1M,
    "camelyon": CAMELYON,
    "iwildcam": IWILDCAM,
    "retinopathy": RETINOPATHY,
    "retinopathy-aptos": RETINOPATHY_APTOS,
    "pacs": PACS,
}
"""All that can be asked for, and `retinopathy-aptos`, the second test of retinopathy."""

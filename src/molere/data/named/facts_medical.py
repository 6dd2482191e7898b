"""Facts about data of several sources: hospitals, camera traps, clinics."""

from molere.data.named.factsheet import Facts

_WILDS = 'Koh et al., "WILDS: A Benchmark of in-the-Wild Distribution Shifts", ICML 2021'

CAMELYON = Facts(
    title="Camelyon17-WILDS",
    size="302,436 + 85,054 patches 96 x 96 of 5 hospitals, 2 classes; 10 GB",
    licence="CC0",
    citation=f'Bandi et al., "From Detection of Individual Metastases to Classification of Lymph Node Status at the '
    f'Patient Level: the CAMELYON17 Challenge", IEEE TMI 2018; {_WILDS}',
    page="https://wilds.stanford.edu/datasets",
    places=("camelyon17_v1.0", "camelyon17", "wilds/camelyon17_v1.0"),
    holds=("metadata.csv", "patches"),
    steps=(
        "the host of WILDS has been down since April 2026 (github.com/p-lambda/wilds, issues 174 and 175); when it is "
        "back: wilds.get_dataset('camelyon17', root_dir=PATH, download=True), from the package wilds",
        "from a copy: unpack camelyon17_v1.0.tar.gz to PATH/camelyon17_v1.0, with metadata.csv and patches/",
    ),
    validation="a random tenth",
)
IWILDCAM = Facts(
    title="iWildCam2020-WILDS",
    size="129,809 + 42,791 + 8,154 images of 323 camera traps, 182 classes; 12 GB",
    licence="CDLA-Permissive-1.0",
    citation=f'Beery, Cole and Gjoka, "The iWildCam 2020 Competition Dataset", 2020; {_WILDS}',
    page="https://wilds.stanford.edu/datasets",
    places=("iwildcam_v2.0", "iwildcam", "wilds/iwildcam_v2.0"),
    holds=("metadata.csv", "train"),
    steps=(
        "the host of WILDS has been down since April 2026 (github.com/p-lambda/wilds, issues 174 and 175); when it is "
        "back: wilds.get_dataset('iwildcam', root_dir=PATH, download=True), from the package wilds",
        "from a copy: unpack iwildcam_v2.0.tar.gz to PATH/iwildcam_v2.0, with metadata.csv and train/",
    ),
    validation="a random tenth",
)
RETINOPATHY = Facts(
    title="Diabetic Retinopathy Detection (Kaggle 2015), referable or not",
    size="35,126 + 53,576 images, grades 0-4 as 2 classes; 88 GB",
    licence="competition rules on the page",
    citation='EyePACS and California Healthcare Foundation, "Diabetic Retinopathy Detection", Kaggle, 2015',
    page="https://www.kaggle.com/c/diabetic-retinopathy-detection",
    places=("diabetic-retinopathy-detection", "retinopathy", "eyepacs"),
    holds=("trainLabels.csv", "train"),
    extra=("retinopathy-aptos",),
    steps=(
        "accept the rules on the page, then: kaggle competitions download -c diabetic-retinopathy-detection",
        "join and unpack train.zip.*, test.zip.* and trainLabels.csv.zip to PATH/diabetic-retinopathy-detection: "
        "train/*.jpeg, test/*.jpeg, trainLabels.csv",
        "put retinopathy_solution.csv (labels of the test images, published after the competition in its forum) beside "
        "them; without it a tenth of the training images becomes the test",
    ),
)
RETINOPATHY_APTOS = Facts(
    title="APTOS 2019 Blindness Detection: the shifted test of retinopathy",
    size="3,662 images, grades 0-4 as 2 classes; 10 GB",
    licence="competition rules on the page",
    citation='Asia Pacific Tele-Ophthalmology Society, "APTOS 2019 Blindness Detection", Kaggle, 2019',
    page="https://www.kaggle.com/c/aptos2019-blindness-detection",
    places=("aptos2019-blindness-detection", "aptos", "aptos2019"),
    holds=("train.csv", "train_images"),
    steps=(
        "accept the rules on the page, then: kaggle competitions download -c aptos2019-blindness-detection",
        "unpack it to PATH/aptos2019-blindness-detection: train.csv, train_images/*.png",
    ),
)

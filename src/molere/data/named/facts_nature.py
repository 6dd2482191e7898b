"""Facts about photographs: aircraft, cars, pets, clothes, and PACS."""

from molere.data.named.factsheet import Facts

AIRCRAFT = Facts(
    title="FGVC-Aircraft",
    size="6,667 + 3,333 images, 100 variants; 2.8 GB",
    licence="for non-commercial research only; terms on the page",
    citation='Maji et al., "Fine-Grained Visual Classification of Aircraft", 2013',
    page="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft",
    places=("fgvc-aircraft-2013b",),
    holds=("data/images", "data/variants.txt", "data/images_variant_trainval.txt", "data/images_variant_test.txt"),
    fetch="FGVCAircraft",
    validation="as many as the official validation part, 3,333 of 6,667",
)
CARS = Facts(
    title="Stanford Cars",
    size="8,144 + 8,041 images, 196 classes; 1.9 GB",
    licence="for non-commercial research only",
    citation='Krause et al., "3D Object Representations for Fine-Grained Categorization", 3dRR 2013',
    page="https://github.com/pytorch/vision/issues/7545",
    places=("stanford_cars",),
    holds=(
        "devkit/cars_train_annos.mat",
        "devkit/cars_meta.mat",
        "cars_test_annos_withlabels.mat",
        "cars_train",
        "cars_test",
    ),
    steps=(
        "its makers no longer offer it; people keep copies of cars_train.tgz, cars_test.tgz, car_devkit.tgz and "
        "cars_test_annos_withlabels.mat (the page lists some)",
        "unpack the three to PATH/stanford_cars: cars_train/*.jpg, cars_test/*.jpg, devkit/cars_train_annos.mat, "
        "devkit/cars_meta.mat; a copy may hold cars_train/cars_train: move the inner folder up",
        "put cars_test_annos_withlabels.mat into PATH/stanford_cars itself",
    ),
    validation="1,000 of 8,144",
)
PET = Facts(
    title="Oxford-IIIT Pet",
    size="3,680 + 3,669 images, 37 breeds; 811 MB",
    licence="CC BY-SA 4.0",
    citation='Parkhi et al., "Cats and Dogs", CVPR 2012',
    page="https://www.robots.ox.ac.uk/~vgg/data/pets",
    places=("oxford-iiit-pet",),
    holds=("images", "annotations/trainval.txt", "annotations/test.txt"),
    fetch="OxfordIIITPet",
    validation="600 of 3,680",
)
CLOTHING1M = Facts(
    title="Clothing-1M",
    size="1,000,000 images with noisy labels, 47,570 + 14,313 + 10,526 with right ones, 14 classes; 100 GB",
    licence="for research only, on request",
    citation='Xiao et al., "Learning from Massive Noisy Labeled Data for Image Classification", CVPR 2015',
    page="https://github.com/Cysu/noisy_label",
    places=("clothing1m", "Clothing1M", "clothing1M", "."),
    holds=(
        "images",
        "noisy_train_key_list.txt|annotations/noisy_train_key_list.txt",
        "noisy_label_kv.txt|annotations/noisy_label_kv.txt",
        "clean_label_kv.txt|annotations/clean_label_kv.txt",
        "clean_val_key_list.txt|annotations/clean_val_key_list.txt",
        "clean_test_key_list.txt|annotations/clean_test_key_list.txt",
    ),
    steps=(
        "ask the authors for access, as the page says",
        "unpack the archives images/0.tar ... images/9.tar to PATH/clothing1m/images",
        "put the *_key_list.txt and *_label_kv.txt files into PATH/clothing1m, or into annotations there",
    ),
)
PACS = Facts(
    title="PACS: photos, art paintings, cartoons, sketches",
    size="9,991 images 227 x 227 in 4 domains, 7 classes; 191 MB",
    licence="none stated",
    citation='Li et al., "Deeper, Broader and Artier Domain Generalization", ICCV 2017',
    page="https://dali-dl.github.io/project_iccv2017.html",
    places=("PACS", "pacs", "pacs_data", "PACS/kfold", "kfold", "PACS/pacs_data", "."),
    holds=("art_painting", "cartoon", "photo", "sketch"),
    steps=(
        "take the folder of original images that the page points to",
        "lay it out as PATH/PACS/DOMAIN/CLASS/*.jpg, with the domains art_painting, cartoon, photo and sketch",
    ),
)

#!/usr/bin/env bash
# mxnet 1.9.1 (with numpy 1.23.5, OpenCV 4.9), one record file, one JPEG with an EXIF orientation. Expected: all readers
# of the package hand out the same picture, turned or not.
# Seen: ImageRecordIter, which training uses, and recordio.unpack_img with a colour flag turn the picture by its EXIF
# tag; ImageIter, gluon's ImageRecordDataset, image.imdecode and unpack_img without a flag give it as stored.
# It matters because pack() stores a photograph's bytes with its tag: a data set checked with one reader and trained
# with another has its portrait photographs lying on their side or upside down, for a part of the cameras only.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mxnet==1.9.1 numpy==1.23.5 opencv-python-headless==4.9.0.80 pillow==11.3.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import io

import mxnet as mx
import numpy as np
from mxnet.gluon.data.vision import ImageRecordDataset
from PIL import Image

picture = np.zeros((112, 112, 3), np.uint8)
picture[:56, :, 0] = picture[56:, :, 2] = 255  # as stored: red above, blue below
image = Image.fromarray(picture)
tags = image.getexif()
tags[0x0112] = 3  # show it turned by 180 degrees
stream = io.BytesIO()
image.save(stream, "JPEG", quality=95, exif=tags)
record = mx.recordio.MXIndexedRecordIO("faces.idx", "faces.rec", "w")
record.write_idx(0, mx.recordio.pack(mx.recordio.IRHeader(0, 0.0, 0, 0), stream.getvalue()))
record.close()
packed = mx.recordio.MXIndexedRecordIO("faces.idx", "faces.rec", "r").read_idx(0)
files = {"path_imgrec": "faces.rec", "path_imgidx": "faces.idx", "data_shape": (3, 112, 112), "batch_size": 1}
tops = {  # the value at the top of the picture, as red, green, blue
    "ImageRecordIter": next(mx.io.ImageRecordIter(**files)).data[0].asnumpy()[0, :, 5, 5],
    "ImageIter": next(mx.image.ImageIter(**files)).data[0].asnumpy()[0, :, 5, 5],
    "ImageRecordDataset": ImageRecordDataset("faces.rec")[0][0].asnumpy()[5, 5],
    "image.imdecode": mx.image.imdecode(mx.recordio.unpack(packed)[1]).asnumpy()[5, 5],
    "unpack_img(-1)": mx.recordio.unpack_img(packed)[1][5, 5, ::-1],
    "unpack_img(1)": mx.recordio.unpack_img(packed, 1)[1][5, 5, ::-1],
}
seen = {name: "as stored" if top[0] > 200 else "turned" for name, top in tops.items()}
print("seen:", seen)
turned = {"ImageRecordIter", "unpack_img(1)"}
raise SystemExit(0 if all((how == "turned") == (name in turned) for name, how in seen.items()) else 1)
PY

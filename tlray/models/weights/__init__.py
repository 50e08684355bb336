"""Weights files: what one is, its tensors, the names they go by, and their place in a model.

    file = read_weights("s3://bucket/mobilenet_v2.safetensors")             # read.py
    check_architecture(file, model_id)                                      # metadata.py
    loaded = load_weights(model, file, head=("classifier.1",), backbone_id="torchvision/mobilenet_v2")   # load.py

Formats: .safetensors, and torch.save files (.pth, .pt, .bin, .tar) without arbitrary pickles. A safetensors file may
say in its metadata how images are to be prepared for it (mean, std, input_size, interpolation, crop_pct, resize) and
what it was made for (library, arch); both are honoured.
"""

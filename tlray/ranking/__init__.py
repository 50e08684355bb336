"""Which backbones are worth a sweep: transferability scores on features of a subset of the training images.

    scores = score_features(features, labels, probabilities)      # scores.py: every score of one backbone
    ranking = make_ranking(rows, settings, ...)                   # result.py: what ranking.json holds

One score a file, each of features (N, D) and labels (N,) int in numpy float64, higher is better. What touches images,
models and Ray lies elsewhere: subset.py chooses the images, features.py reads what a backbone made of them.
"""

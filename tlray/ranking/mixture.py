"""A Gaussian mixture with full covariances, fitted by expectation-maximisation from a seeded start.

Dempster, Laird, Rubin: Maximum Likelihood from Incomplete Data via the EM Algorithm, 1977; Bishop, Pattern Recognition
and Machine Learning, 2006, section 9.2.2. It starts with k-means from greedy k-means++ (Arthur, Vassilvitskii, 2007).
"""

import numpy as np

MOST_STEPS = 50
TOLERANCE = 1e-3  # nats per image
FLOOR = 1e-6  # added to the variances, which are near one
LLOYD_STEPS = 20


def fit_mixture(points: np.ndarray, num_components: int, *, seed: int) -> np.ndarray:
    """points (N, K) float64 -> p(component | point), (N, M); M is num_components, at most N."""
    rng = np.random.default_rng(seed)
    centres = _k_means(points, min(num_components, len(points)), rng)
    responsibilities = np.eye(len(centres))[_nearest(points, centres)]
    likelihood = -np.inf
    for _ in range(MOST_STEPS):
        responsibilities, now = expectation(points, *maximisation(points, responsibilities))
        if now - likelihood < TOLERANCE:
            break
        likelihood = now
    return responsibilities


def maximisation(points: np.ndarray, responsibilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (M,), means (M, K) and covariances (M, K, K) of the components, given who belongs to them (N, M)."""
    counts = responsibilities.sum(axis=0) + 10 * np.finfo(np.float64).eps
    means = (responsibilities.T @ points) / counts[:, None]
    covariances = np.empty((len(counts), points.shape[1], points.shape[1]))
    for component, (mean, weights) in enumerate(zip(means, responsibilities.T, strict=True)):
        away = points - mean
        covariances[component] = (weights[:, None] * away).T @ away / counts[component]
        covariances[component].flat[:: points.shape[1] + 1] += FLOOR
    return counts / counts.sum(), means, covariances


def expectation(
    points: np.ndarray, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray
) -> tuple[np.ndarray, float]:
    """(responsibilities (N, M), mean log likelihood of a point in nats)."""
    logs = np.empty((len(points), len(weights)))
    for component, (weight, mean, covariance) in enumerate(zip(weights, means, covariances, strict=True)):
        lower = np.linalg.cholesky(covariance)
        scaled = np.linalg.solve(lower, (points - mean).T)
        determinant = 2 * np.log(np.diag(lower)).sum() + points.shape[1] * np.log(2 * np.pi)
        logs[:, component] = np.log(weight) - 0.5 * ((scaled**2).sum(axis=0) + determinant)
    largest = logs.max(axis=1, keepdims=True)
    total = largest + np.log(np.exp(logs - largest).sum(axis=1, keepdims=True))
    return np.exp(logs - total), float(total.mean())


def _k_means(points: np.ndarray, num_centres: int, rng: np.random.Generator) -> np.ndarray:
    centres = _spread(points, num_centres, rng)
    for _ in range(LLOYD_STEPS):
        nearest = _nearest(points, centres)
        moved = centres.copy()
        for place in np.unique(nearest):
            moved[place] = points[nearest == place].mean(axis=0)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def _spread(points: np.ndarray, num_centres: int, rng: np.random.Generator) -> np.ndarray:
    """Points far from one another: each the best of some drawn by their squared distance to those before."""
    num_candidates = 2 + int(np.log(num_centres))
    chosen = [int(rng.integers(len(points)))]
    closest = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < num_centres:
        chances = closest / closest.sum() if closest.sum() > 0 else None
        candidates = rng.choice(len(points), size=num_candidates, p=chances)
        distances = [np.minimum(closest, ((points - points[one]) ** 2).sum(axis=1)) for one in candidates]
        best = int(np.argmin([one.sum() for one in distances]))
        chosen.append(int(candidates[best]))
        closest = distances[best]
    return points[chosen]


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return ((points**2).sum(axis=1)[:, None] - 2 * points @ centres.T + (centres**2).sum(axis=1)).argmin(axis=1)

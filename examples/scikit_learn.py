"""scikit-learn: its `n_jobs` are tasks of the cluster, by joblib."""

import joblib
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score

from trio_dask import Client

x, y = make_classification(2000, 20, random_state=0)
search = GridSearchCV(LogisticRegression(max_iter=500), {"C": [0.001, 0.1, 10.0]}, cv=4)

with Client(n_workers=2, threads_per_worker=1), joblib.parallel_config("trio_dask"):
    search.fit(x, y)  # 12 fits
    print("best:", search.best_params_)
    print("folds:", len(cross_val_score(search.best_estimator_, x, y, cv=5)))

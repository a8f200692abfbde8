"""Read label values by the rule of params.yaml."""

import pandas as pd

from tasks.errors import SourceInvalid
from tasks.rows.params import LabelColumn, normalise_label
from tasks.rows.schema import MISSING_WORDS

# As a label, "missing" or "unknown" may be a kind of anomaly.
NO_LABEL = frozenset(MISSING_WORDS) - {"missing", "unknown"}


def interpret_labels(rule: LabelColumn, texts: pd.Series) -> pd.Series:
    """1 for a value that means anomalous, 0 for normal, null for a missing one (N,).

    Raises SourceInvalid for a value that is in neither list.
    """
    anomalous, normal = rule.meanings
    words = texts.map({text: normalise_label(text) for text in texts.dropna().unique()})
    words = words.where(words.isin(anomalous | normal) | ~words.isin(NO_LABEL))
    unknown = texts[words.notna() & ~words.isin(anomalous | normal)]
    if rule.anomalous and len(unknown):
        raise SourceInvalid(
            "The label column has values that mean neither anomalous nor normal.",
            where=f"column {rule.column}",
            got=", ".join(f"{value!r} ({count:,} rows)" for value, count in unknown.value_counts().head(5).items()),
            expected=f"anomalous: {', '.join(sorted(anomalous))}; normal: {', '.join(sorted(normal))}; or empty",
            todo="add the values to ingest.labels in params.yaml, or correct the source; nothing of it has landed",
        )
    is_anomalous = words.isin(anomalous) if rule.anomalous else ~words.isin(normal)
    return is_anomalous.astype("Int8").where(words.notna())

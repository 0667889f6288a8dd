"""Text becomes a prepared corpus: a vocabulary, and the ids of every split on disk.

In the order in which text passes through them:

    sources       from a config to its files: as what, for which split, and their fingerprint; errors
    texts         the rows of text files; the steps of data.normalize
    records       the rows of JSON and CSV files
    readers       all files of a config, read in parts; through `datasets` where charlm has no parser
    batches       the rows of a split as batches of UTF-8, in pieces that threads read in parallel
    vocabulary    characters, and UTF-8 bytes for all others: text to ids and back
    kernels       the compiled loops that count and encode
    count_encode  the two passes over a piece of text
    layout        where each piece goes in the arrays of ids, and writing them
    build         a corpus from start to end, restartable, alone or in shards
    baselines     what a unigram, an n-gram and xz score on validation
    prepared      a prepared corpus: found, built, waited for, opened, verified
"""

"""Text becomes a prepared corpus: a vocabulary, and the ids of every split on disk.

In the order of the text's way:

    sources       which local files a config names
    loading       from a config to the files of every split, through `datasets`
    readers       parquet, Arrow and literal text in batches of rows
    textfile      text files in batches of rows, to the byte
    batches       rows of UTF-8 with the documents they belong to, cut into pieces that workers share
    kernels       the compiled loops that count and encode
    vocabulary    characters, and UTF-8 bytes for the rest: text to ids and back
    count_encode  the two passes over a piece of text
    layout        where each piece goes in the arrays of ids
    id_writer     the arrays while they are written
    build         a corpus from start to end, restartable, alone or in shards
    baselines     what a unigram, an n-gram and xz reach on validation
    prepared      a prepared corpus: found, built, waited for, opened, verified

Imports config.
"""

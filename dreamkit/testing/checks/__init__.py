"""All checks. Importing a module of this package registers its checks, in this order."""

from dreamkit.testing.checks import (
    computing as computing,
    data_files as data_files,
    document_contents as document_contents,
    drawn_images as drawn_images,
    embedding_and_head as embedding_and_head,
    hidden_states as hidden_states,
    kv_cache as kv_cache,
    learning as learning,
    making as making,
    objective as objective,
    other_processes as other_processes,
    preprocessing as preprocessing,
    projecting as projecting,
    reading_documents as reading_documents,
    threads_that_read as threads_that_read,
    tokenizing as tokenizing,
)

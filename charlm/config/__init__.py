"""What a run is: every option, and how it is read from YAML and the command line.

    fields   the options: a dataclass per section, with help texts and checks
    parse    YAML files, command lines, the configs and sizes that come with charlm
    sizes    model.size: fields that grow together

Imports errors only, neither torch nor datasets: `charlm --help` must answer at once.
"""

"""The options of a run, and how they are read. Imports errors only: `charlm --help` must not load torch.

fields   one dataclass per section of the config, with the help texts
model_fields  the section of the network
checks   what values the fields may have; fills in the preset of model.size
parse    reads YAML files, the command line, the configs that come with charlm
synonyms.yaml  names that other programs have for fields
sizes/   the presets of model.size, as YAML
"""

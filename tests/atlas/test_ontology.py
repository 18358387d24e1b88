"""The tree of regions, on one small enough to read."""

from pathlib import Path

import numpy as np
import pytest

from atlalign.atlas.ontology import Ontology, Region, read_ontology
from atlalign.atlas.phantom_anatomy import PHANTOM_REGIONS, phantom_ontology
from atlalign.errors import InputError

BRAIN = [
    Region(997, "root", "root", (997,), (255, 255, 255)),
    Region(8, "grey", "grey matter", (997, 8), (191, 218, 227)),
    Region(567, "CH", "cerebrum", (997, 8, 567), (176, 240, 255)),
    Region(614454277, "SU", "supraoculomotor nucleus", (997, 614454277), (1, 2, 3)),
]
TABLE = """id,name,acronym,structure_id_path,color_hex_triplet,safe_name
997,root,root,/997/,FFFFFF,root
8,"grey, matter",grey,/997/8/,BFDAE3,grey matter
567,x,CH,/997/8/567/,B0F0FF,cerebrum
614454277,x,SU,/997/614454277/,10203,supraoculomotor nucleus
"""


def test_ontology_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "tree.csv").write_text(TABLE)
    assert list(read_ontology(tmp_path / "tree.csv")) == BRAIN


def test_colors_and_tree_are_optional(tmp_path: Path) -> None:
    (tmp_path / "tree.csv").write_text("id,acronym,name\n8.0,grey,grey matter\n5,x,\n")
    ontology = read_ontology(tmp_path / "tree.csv")
    assert list(ontology) == [Region(8, "grey", "grey matter", (8,), None), Region(5, "x", "", (5,), None)]
    assert ontology.depth == 0
    (tmp_path / "tree.csv").write_text(TABLE.replace("B0F0FF", ""))
    colors = [region.color for region in read_ontology(tmp_path / "tree.csv")]
    assert colors == [(255, 255, 255), (191, 218, 227), None, (1, 2, 3)]


@pytest.mark.parametrize(
    "table",
    [
        TABLE.replace('"grey, matter"', "x").replace(",", ";"),
        TABLE.replace('"grey, matter"', "x").replace(",", "\t"),
        "\ufeff" + TABLE.replace("safe_name", "Safe_Name").replace("id,name", "ID, Name"),
        TABLE.replace(",name", ",other").replace("safe_name", "name"),
    ],
)
def test_all_dialects_give_the_same_ontology(tmp_path: Path, table: str) -> None:
    (tmp_path / "tree.csv").write_text(table)
    assert list(read_ontology(tmp_path / "tree.csv")) == BRAIN


def test_labels_go_up_the_tree_and_no_further_than_they_are() -> None:
    ontology = Ontology(BRAIN)
    labels = np.array([[0, 567, 8], [997, 614454277, 5]], dtype=np.uint32)
    assert ontology.at_depth(labels, 1).tolist() == [[0, 8, 8], [997, 614454277, 5]]
    assert ontology.at_depth(labels, 0).tolist() == [[0, 997, 997], [997, 997, 5]]
    assert (ontology.at_depth(labels, ontology.depth) == labels).all()
    assert ontology.at_depth(labels, 1).dtype == np.uint32


def test_regions_know_their_depth() -> None:
    ontology = Ontology(BRAIN)
    assert ontology.depth == 2
    assert [region.depth for region in ontology] == [0, 1, 2, 1]
    assert 8 in ontology
    assert 9 not in ontology


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("", "expected the columns id, acronym, name, .* found none"),
        (
            TABLE.replace("acronym", "short"),
            "expected the columns id, acronym, safe_name, .* found 'id', 'name', 's",
        ),
        (TABLE.splitlines()[0], "expected regions .*found none"),
        (TABLE + TABLE.splitlines()[-1], "ontology: expected each id once, found 614454277 twice"),
        (TABLE.replace("567,x", "568,x"), "ontology: expected the path of 568 to end in it"),
        (TABLE.replace("567,x", "a,x"), "line 4, id: expected a number, found 'a'"),
        (
            TABLE.replace("FFFFFF", "white!"),
            "line 2, color_.*: expected six hexadecimal digits, found 'white!'",
        ),
        (TABLE.replace("FFFFFF", "FFFFFFFF"), "expected six hexadecimal digits, found 'FFFFFFFF'"),
        (
            TABLE.replace("/997/8/567/", "/997/x/"),
            "line 4, structure_id_path: expected ids .* found '/997/x/'",
        ),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, table: str, sentence: str) -> None:
    (tmp_path / "tree.csv").write_text(table)
    with pytest.raises(InputError, match=rf"tree\.csv.*{sentence}"):
        read_ontology(tmp_path / "tree.csv")


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.csv: cannot be read"):
        read_ontology(tmp_path / "no.csv")


def test_the_phantom_has_an_ontology_of_all_its_regions() -> None:
    ontology = phantom_ontology()
    assert {region.id: region.name for region in ontology if region.id in PHANTOM_REGIONS} == PHANTOM_REGIONS
    assert all(part in ontology for region in ontology for part in region.path)
    assert len({region.acronym for region in ontology}) == len(ontology)


def test_the_real_ontology_names_every_region_of_the_real_atlas(test_data: Path) -> None:
    import h5py

    ontology = read_ontology(test_data / "structure_tree_safe_2017.csv")
    with h5py.File(test_data / "allen_ccf_25um.h5") as file:
        found = np.unique(file["annotation"][::8])
    assert ontology[997].name == "root"
    missing = [int(region) for region in found if region and int(region) not in ontology]
    assert not missing


def test_a_parent_may_have_a_larger_id_than_the_labels_type_holds():
    tree = Ontology([Region(2**40, "r", "r", (2**40,), None), Region(7, "a", "a", (2**40, 7), None)])
    assert tree.at_depth(np.array([[0, 7]], np.uint8), 0).tolist() == [[0, 2**40]]

"""The page as a visitor uses it, in headless Chromium: typing, drawing, keyboard only, a phone, bad input, files."""

import re
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest
import uvicorn
from rdkit import Chem
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from modeling_pcbridge.constants import KCAL_PER_MOL_TO_EV
from pcbridge.app.default_model import find_model
from pcbridge.app.web.server import create_app

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromium-driver (apt-get install)"),
]


@pytest.fixture(scope="module")
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(create_app(find_model(None)), host="127.0.0.1", port=port, log_level="warning")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(params=["webgl"])
def browser(address, tmp_path, request):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    webgl = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    for flag in ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900", *webgl]:
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    if request.param == "no webgl":
        source = "for (const kind of [HTMLCanvasElement, OffscreenCanvas]) kind.prototype.getContext = () => null"
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
    browser.get(address)
    yield browser
    errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    browser.quit()
    # Chromium itself logs the answer to bad input, and 3Dmol.js that it found no WebGL.
    expected = ("status of 422", "reading 'getParameter'")
    assert [error for error in errors if not any(part in error for part in expected)] == []


def find(browser, element_id: str):
    return browser.find_element(By.ID, element_id)


def wait(browser, condition):
    return WebDriverWait(browser, 60).until(lambda _: condition())


def predict(browser, smiles: str) -> None:
    find(browser, "smiles").clear()
    find(browser, "smiles").send_keys(smiles)
    find(browser, "predict").click()


def wait_for_structure(browser) -> None:
    """Until the energy is there and the refinement has been played to its end."""
    wait(browser, lambda: find(browser, "numbers").is_displayed())
    wait(browser, lambda: find(browser, "step-text").text == "refined")


def energy(browser) -> float:
    return float(find(browser, "energy").text.replace("\N{MINUS SIGN}", "-").replace(",", ""))


def downloaded(folder: Path, name: str) -> list[Chem.Mol]:
    path = folder / name
    for _ in range(100):
        if path.exists():
            break
        time.sleep(0.1)
    return list(Chem.SDMolSupplier(str(path), removeHs=False))


def test_typed_molecule_to_downloaded_file(browser, tmp_path):
    predict(browser, "CCCCO")
    wait_for_structure(browser)
    assert find(browser, "formula").text == "C4H10O"
    assert "B3LYP/6-31G*" in find(browser, "numbers").text and 0 < float(find(browser, "moved").text) < 0.1
    assert find(browser, "viewer").get_attribute("aria-label").startswith("Structure of C4H10O")
    assert find(browser, "predict").text == "Predict" and not find(browser, "progress").is_displayed()
    assert "From 10 conformers of RDKit" in find(browser, "cost").text

    lowest = energy(browser)
    conformers = browser.find_elements(By.CSS_SELECTOR, "#conformer-list label")
    assert f"{len(conformers)} distinct conformers" in find(browser, "found").text and len(conformers) >= 3
    weights = [int(re.search(r"(\d+)%", conformer.text)[1]) for conformer in conformers]
    assert weights == sorted(weights, reverse=True) and sum(weights) == pytest.approx(100, abs=len(weights))
    conformers[2].click()
    above = float(re.search(r"\+([\d.]+) kcal/mol", conformers[2].text)[1])
    assert energy(browser) - lowest == pytest.approx(above * KCAL_PER_MOL_TO_EV, abs=0.0015)

    find(browser, "download").click()
    find(browser, "download-all").click()
    (shown,) = downloaded(tmp_path, "C4H10O-conformer-3.sdf")
    assert shown.GetNumAtoms() == 15 and shown.GetDoubleProp("energy_eV") == pytest.approx(energy(browser), abs=6e-4)
    every = downloaded(tmp_path, "C4H10O-conformers.sdf")
    assert sum(mol.GetDoubleProp("boltzmann_weight") for mol in every) == pytest.approx(1)
    assert len(every) == len(conformers)


def test_overlays_and_the_refinement_can_be_looked_at(browser):
    predict(browser, "CCCCO")
    wait_for_structure(browser)
    pictures = {"alone": browser.get_screenshot_as_base64()}
    for toggle in ("show-forces", "show-all"):
        find(browser, toggle).click()
        pictures[toggle] = browser.get_screenshot_as_base64()
    find(browser, "step").send_keys(Keys.HOME)
    assert find(browser, "step-text").text == "RDKit"
    pictures["start"] = browser.get_screenshot_as_base64()
    assert len(set(pictures.values())) == 4
    find(browser, "play").click()
    wait(browser, lambda: find(browser, "step-text").text.startswith("step "))
    wait_for_structure(browser)


def test_a_test_molecule_has_its_reference(browser):
    predict(browser, "Oc1ccccc1")
    wait_for_structure(browser)
    assert float(find(browser, "rmsd").text) < 0.05 and find(browser, "reference-toggle").is_displayed()
    with_reference = browser.get_screenshot_as_base64()
    find(browser, "show-reference").click()
    assert browser.get_screenshot_as_base64() != with_reference


def test_atoms_beyond_the_training_data_are_marked(browser):
    predict(browser, "FC(F)(F)C(F)(F)C(F)(F)OOC(=O)OC=C=C")
    wait_for_structure(browser)
    assert "(O10, C15)" in find(browser, "notes").text and "Beyond training" in find(browser, "beyond-toggle").text
    marked = browser.get_screenshot_as_base64()
    find(browser, "show-beyond").click()
    assert browser.get_screenshot_as_base64() != marked


def test_the_page_says_what_its_model_is(browser):
    about = find(browser, "about")
    wait(browser, about.is_displayed)
    assert "Model drug_like" in about.text and "B3LYP/6-31G*" in about.text and "Br, I" in about.text


def test_bad_input_is_a_sentence_and_the_next_try_works(browser):
    predict(browser, "C[SiH3]")
    error = find(browser, "error")
    wait(browser, error.is_displayed)
    assert error.text.startswith("Unsupported element Si; this model knows H, C, N, O, F")
    assert error.get_attribute("role") == "alert" and find(browser, "smiles").get_attribute("aria-invalid") == "true"
    assert not find(browser, "numbers").is_displayed()
    predict(browser, "COC")
    wait_for_structure(browser)
    assert not error.is_displayed() and find(browser, "smiles").get_attribute("aria-invalid") is None
    assert not find(browser, "reference-toggle").is_displayed()  # not in the test set


def test_keyboard_alone(browser):
    def press(*keys):
        ActionChains(browser).send_keys(*keys).perform()

    def focused() -> str:
        return browser.switch_to.active_element.get_attribute("id")

    press(Keys.TAB)
    assert focused() == "smiles"
    press("CCCO", Keys.ENTER)
    wait_for_structure(browser)
    while focused() != "viewer":
        press(Keys.TAB)
    before = find(browser, "viewer").screenshot_as_base64
    press(Keys.ARROW_RIGHT)
    assert find(browser, "viewer").screenshot_as_base64 != before
    while browser.switch_to.active_element.get_attribute("name") != "conformer":
        press(Keys.TAB)
    lowest = energy(browser)
    press(Keys.ARROW_DOWN)
    assert energy(browser) >= lowest and browser.switch_to.active_element.get_attribute("value") == "1"
    press(Keys.TAB)
    assert focused() == "download"


def test_drawn_molecule(browser):
    find(browser, "smiles").send_keys("CCC")
    find(browser, "draw").click()
    canvas = wait(browser, lambda: browser.execute_script("return document.querySelector('#canvas').firstChild"))
    time.sleep(1)  # the editor has no sign of being ready
    # Next to a carbon in the middle of propane, at the centre, a drag adds a bond.
    ActionChains(browser).move_to_element(canvas).click_and_hold().move_by_offset(0, 60).release().perform()
    find(browser, "use-drawing").click()
    wait_for_structure(browser)
    assert find(browser, "smiles").get_attribute("value") not in ("", "CCC")
    assert find(browser, "formula").text != "C3H8"


def test_phone(browser):
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.find_element(By.CSS_SELECTOR, "[data-smiles^='CC(C)Cc1']").click()
    wait_for_structure(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    for button in browser.find_elements(By.CSS_SELECTOR, "button, select"):
        if button.is_displayed():
            assert button.size["height"] >= 32
    order = [find(browser, part).location["y"] for part in ("form", "viewer", "molecule", "numbers", "about")]
    assert order == sorted(order)


@pytest.mark.parametrize("browser", ["no webgl"], indirect=True)
def test_without_webgl_numbers_and_file_remain(browser, tmp_path):
    assert "no WebGL" in find(browser, "doing").text
    predict(browser, "CCCO")
    wait(browser, lambda: find(browser, "numbers").is_displayed())
    find(browser, "download-all").click()
    assert len(downloaded(tmp_path, "C3H8O-conformers.sdf")) > 1

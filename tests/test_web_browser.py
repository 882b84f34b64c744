"""The page as a visitor uses it, in headless Chromium: typing, drawing, keyboard only, a phone, bad input, the file."""

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

from pcbridge.app.web.server import create_app

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromium-driver (apt-get install)"),
]
CHECKPOINT = str(Path(__file__).parent.parent / "checkpoints/consistency")


@pytest.fixture(scope="module")
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(create_app(CHECKPOINT), host="127.0.0.1", port=port, log_level="warning"))
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
    """Until the energy is there and the denoising has been played to its end."""
    wait(browser, lambda: find(browser, "numbers").is_displayed())
    wait(browser, lambda: find(browser, "step-text").text == "step 20 of 20")


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
    predict(browser, "Oc1ccccc1")
    wait_for_structure(browser)
    assert energy(browser) == pytest.approx(-8366.0, abs=0.2)
    assert find(browser, "formula").text == "C6H6O"
    assert "B3LYP/6-31G*" in find(browser, "numbers").text and float(find(browser, "rmsd").text) < 0.3
    assert find(browser, "viewer").get_attribute("aria-label").startswith("Structure of C6H6O")
    assert find(browser, "predict").text == "Predict"

    lowest = energy(browser)
    samples = browser.find_elements(By.CSS_SELECTOR, "#sample-list label")
    assert len(samples) == 3 and "lowest" in samples[0].text
    samples[2].click()
    above = float(re.search(r"\+([\d.]+) eV", samples[2].text)[1])
    assert energy(browser) - lowest == pytest.approx(above, abs=0.0011)

    find(browser, "download").click()
    find(browser, "download-all").click()
    (shown,) = downloaded(tmp_path, "C6H6O-sample-3.sdf")
    assert shown.GetNumAtoms() == 13 and shown.GetDoubleProp("energy_eV") == pytest.approx(energy(browser), abs=6e-4)
    assert len(downloaded(tmp_path, "C6H6O-samples.sdf")) == 3


def test_overlays_and_the_denoising_can_be_looked_at(browser):
    predict(browser, "Oc1ccccc1")
    wait_for_structure(browser)
    pictures = {"all": browser.get_screenshot_as_base64()}
    for toggle in ("show-forces", "show-reference"):
        find(browser, toggle).click()
        pictures[toggle] = browser.get_screenshot_as_base64()
    find(browser, "step").send_keys(Keys.HOME)
    assert find(browser, "step-text").text == "step 0 of 20"
    pictures["noise"] = browser.get_screenshot_as_base64()
    assert len(set(pictures.values())) == 4
    find(browser, "play").click()
    wait(browser, lambda: find(browser, "step-text").text not in ("step 0 of 20", "step 20 of 20"))
    wait_for_structure(browser)


def test_bad_input_is_a_sentence_and_the_next_try_works(browser):
    predict(browser, "CSC")
    error = find(browser, "error")
    wait(browser, error.is_displayed)
    assert error.text == "Unsupported element S; this model knows H, C, N, O, F."
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
    press("CCO", Keys.ENTER)
    wait_for_structure(browser)
    while focused() != "viewer":
        press(Keys.TAB)
    before = find(browser, "viewer").screenshot_as_base64
    press(Keys.ARROW_RIGHT)
    assert find(browser, "viewer").screenshot_as_base64 != before
    while browser.switch_to.active_element.get_attribute("name") != "sample":
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
    browser.find_element(By.CSS_SELECTOR, "[data-smiles='CN(C)C=O']").click()
    wait_for_structure(browser)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    for button in browser.find_elements(By.CSS_SELECTOR, "button, select"):
        if button.is_displayed():
            assert button.size["height"] >= 32
    order = [find(browser, part).location["y"] for part in ("form", "viewer", "numbers", "molecule")]
    assert order == sorted(order)


@pytest.mark.parametrize("browser", ["no webgl"], indirect=True)
def test_without_webgl_numbers_and_file_remain(browser, tmp_path):
    assert "no WebGL" in find(browser, "placeholder").text
    predict(browser, "CCO")
    wait(browser, lambda: find(browser, "numbers").is_displayed())
    find(browser, "download-all").click()
    assert len(downloaded(tmp_path, "C2H6O-samples.sdf")) == 3

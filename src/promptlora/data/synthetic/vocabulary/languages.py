"""Small closed vocabularies in Spanish, French, German and Italian."""

from __future__ import annotations

from promptlora.data.synthetic.vocabulary.tables import table, words

LANGUAGES = ("Spanish", "French", "German", "Italian")

#: English noun, then Spanish, French, German and Italian, each with its gender.
NOUNS = table("""
dog: perro m: chien m: Hund m: cane m; cat: gato m: chat m: Katze f: gatto m; horse: caballo m: cheval m: Pferd n: cavallo m
bird: pájaro m: oiseau m: Vogel m: uccello m; fish: pez m: poisson m: Fisch m: pesce m; cow: vaca f: vache f: Kuh f: mucca f
house: casa f: maison f: Haus n: casa f; door: puerta f: porte f: Tür f: porta f; window: ventana f: fenêtre f: Fenster n: finestra f
table: mesa f: table f: Tisch m: tavolo m; chair: silla f: chaise f: Stuhl m: sedia f; bed: cama f: lit m: Bett n: letto m
book: libro m: livre m: Buch n: libro m; letter: carta f: lettre f: Brief m: lettera f; key: llave f: clé f: Schlüssel m: chiave f
car: coche m: voiture f: Auto n: macchina f; train: tren m: train m: Zug m: treno m; ship: barco m: bateau m: Schiff n: nave f
street: calle f: rue f: Straße f: strada f; city: ciudad f: ville f: Stadt f: città f; church: iglesia f: église f: Kirche f: chiesa f
school: escuela f: école f: Schule f: scuola f; bridge: puente m: pont m: Brücke f: ponte m; garden: jardín m: jardin m: Garten m: giardino m
tree: árbol m: arbre m: Baum m: albero m; flower: flor f: fleur f: Blume f: fiore m; sun: sol m: soleil m: Sonne f: sole m
moon: luna f: lune f: Mond m: luna f; star: estrella f: étoile f: Stern m: stella f; mountain: montaña f: montagne f: Berg m: montagna f
river: río m: rivière f: Fluss m: fiume m; bread: pan m: pain m: Brot n: pane m; cheese: queso m: fromage m: Käse m: formaggio m
milk: leche f: lait m: Milch f: latte m; apple: manzana f: pomme f: Apfel m: mela f; egg: huevo m: œuf m: Ei n: uovo m
wine: vino m: vin m: Wein m: vino m; soup: sopa f: soupe f: Suppe f: zuppa f; knife: cuchillo m: couteau m: Messer n: coltello m
shirt: camisa f: chemise f: Hemd n: camicia f; shoe: zapato m: chaussure f: Schuh m: scarpa f; hat: sombrero m: chapeau m: Hut m: cappello m
friend: amigo m: ami m: Freund m: amico m; father: padre m: père m: Vater m: padre m; mother: madre f: mère f: Mutter f: madre f
brother: hermano m: frère m: Bruder m: fratello m; sister: hermana f: sœur f: Schwester f: sorella f; king: rey m: roi m: König m: re m
queen: reina f: reine f: Königin f: regina f; hand: mano f: main f: Hand f: mano f; head: cabeza f: tête f: Kopf m: testa f
nose: nariz f: nez m: Nase f: naso m; day: día m: jour m: Tag m: giorno m; night: noche f: nuit f: Nacht f: notte f
kitchen: cocina f: cuisine f: Küche f: cucina f; hospital: hospital m: hôpital m: Krankenhaus n: ospedale m
""")

#: English word, then the four languages; none of these forms depends on gender (adjectives are in the base form).
COLOURS = table("""
red: rojo: rouge: rot: rosso; blue: azul: bleu: blau: blu; green: verde: vert: grün: verde; yellow: amarillo: jaune: gelb: giallo
black: negro: noir: schwarz: nero; white: blanco: blanc: weiß: bianco; brown: marrón: marron: braun: marrone
gray: gris: gris: grau: grigio; pink: rosa: rose: rosa: rosa
""")
DAYS = table("""
Monday: lunes: lundi: Montag: lunedì; Tuesday: martes: mardi: Dienstag: martedì; Wednesday: miércoles: mercredi: Mittwoch: mercoledì
Thursday: jueves: jeudi: Donnerstag: giovedì; Friday: viernes: vendredi: Freitag: venerdì; Saturday: sábado: samedi: Samstag: sabato
Sunday: domingo: dimanche: Sonntag: domenica
""")
MONTHS = table("""
January: enero: janvier: Januar: gennaio; February: febrero: février: Februar: febbraio; March: marzo: mars: März: marzo
April: abril: avril: April: aprile; May: mayo: mai: Mai: maggio; June: junio: juin: Juni: giugno; July: julio: juillet: Juli: luglio
August: agosto: août: August: agosto; September: septiembre: septembre: September: settembre; October: octubre: octobre: Oktober: ottobre
November: noviembre: novembre: November: novembre; December: diciembre: décembre: Dezember: dicembre
""")
PHRASES = table("""
good morning: buenos días: bonjour: guten Morgen: buongiorno; good night: buenas noches: bonne nuit: gute Nacht: buonanotte
thank you: gracias: merci: danke: grazie; please: por favor: s'il vous plaît: bitte: per favore; yes: sí: oui: ja: sì
no: no: non: nein: no; goodbye: adiós: au revoir: auf Wiedersehen: arrivederci; see you tomorrow: hasta mañana: à demain: bis morgen: a domani
welcome: bienvenido: bienvenue: willkommen: benvenuto; sorry: perdón: pardon: Entschuldigung: scusa
I do not understand: no entiendo: je ne comprends pas: ich verstehe nicht: non capisco
I do not know: no sé: je ne sais pas: ich weiß nicht: non lo so; how are you: cómo estás: comment vas-tu: wie geht es dir: come stai
today: hoy: aujourd'hui: heute: oggi; tomorrow: mañana: demain: morgen: domani; yesterday: ayer: hier: gestern: ieri
always: siempre: toujours: immer: sempre; never: nunca: jamais: nie: mai; now: ahora: maintenant: jetzt: adesso
with pleasure: con gusto: avec plaisir: gern: con piacere; happy birthday: feliz cumpleaños: joyeux anniversaire: alles Gute zum Geburtstag: buon compleanno
""")

#: The numbers from 1 on.
NUMBERS = {
    "Spanish": words("uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis diecisiete dieciocho diecinueve veinte"),
    "French": words("un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept dix-huit dix-neuf vingt"),
    "German": words("eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn zwanzig"),
    "Italian": words("uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici diciassette diciotto diciannove venti"),
}  # fmt: skip


def noun(row: tuple[str, ...], language: str) -> tuple[str, str]:
    """The table's noun in a language: the word and its gender (m, f or n)."""
    word, gender = row[1 + LANGUAGES.index(language)].rsplit(" ", 1)
    return word, gender


def _vowel(word: str) -> bool:
    return word[0].lower() in "aeiouàáâéèêíìîóòôúùœh"  # h is silent in all nouns of the table for which this is called


def definite(word: str, gender: str, language: str) -> str:
    """The noun with its definite article in the singular (German: nominative)."""
    if language == "Spanish":
        return f"{'el' if gender == 'm' else 'la'} {word}"
    if language == "German":
        return f"{ {'m': 'der', 'f': 'die', 'n': 'das'}[gender] } {word}"
    if _vowel(word):
        return f"l'{word}"
    if language == "French":
        return f"{'le' if gender == 'm' else 'la'} {word}"
    return f"{'il' if gender == 'm' else 'la'} {word}"  # no noun of the table takes lo


def indefinite(word: str, gender: str, language: str) -> str:
    """The noun with its indefinite article (German: nominative)."""
    if language == "German":
        return f"{'eine' if gender == 'f' else 'ein'} {word}"
    if language == "French":
        return f"{'un' if gender == 'm' else 'une'} {word}"
    if language == "Italian" and gender == "f" and _vowel(word):
        return f"un'{word}"
    return f"{'un' if gender == 'm' else 'una'} {word}"

"""Names, cities, jobs, and other parts of records about people."""

from __future__ import annotations

from promptlora.data.synthetic.vocabulary.tables import lines, words

FIRST = words("""
Adam Alice Amir Ana Ben Carla Carlos Chen Clara Daniel Diana Elena Emil Emma Eric Fatima Felix Fiona Frank Grace Hana
Hugo Ines Ivan Jack Jane Jonas Julia Karim Kate Laura Leo Lily Linda Lucas Maria Marco Marta Max Mei Mia Nadia Nina
Noah Nora Olga Omar Oscar Paul Petra Priya Rachel Raj Rosa Ruth Sam Sara Simon Sofia Tara Tom Vera Victor Yuki Zoe
""")
LAST = words("""
Abbott Adams Baker Bauer Becker Bell Brown Carter Chan Clark Cohen Costa Cruz Davis Diaz Dubois Evans Fischer Flores
Ford Foster Garcia Grant Gray Green Hall Harris Hill Hughes Ito Jensen Jones Kaur Keller Khan Kim King Klein Lee Lopez
Martin Meyer Miller Moore Morgan Murphy Nguyen Novak Olsen Park Patel Perez Price Reed Reyes Rossi Sato Silva Singh
Smith Stone Tanaka Taylor Turner Wagner Walker Ward Weber White Wolf Wood Young
""")
CITIES = lines("""
Amsterdam
Athens
Berlin
Bogota
Boston
Brussels
Cairo
Chicago
Dallas
Delhi
Denver
Dublin
Geneva
Hamburg
Helsinki
Istanbul
Kyoto
Lagos
Lima
Lisbon
London
Lyon
Madrid
Milan
Montreal
Mumbai
Nairobi
Naples
Oslo
Paris
Porto
Prague
Rome
Seoul
Seville
Sydney
Toronto
Tunis
Vienna
Warsaw
Zurich
""")
JOBS = words("""
accountant architect baker barber builder carpenter chef chemist cleaner dancer dentist designer doctor driver editor
electrician engineer farmer gardener guide lawyer librarian mechanic nurse painter photographer pilot plumber
programmer reporter sailor scientist singer tailor teacher translator waiter writer
""")
HOBBIES = lines("""
chess
cooking
cycling
dancing
drawing
fishing
gardening
hiking
painting
photography
reading
running
sailing
skiing
swimming
tennis
yoga
""")
PRODUCTS = words("""
backpack bicycle blender camera carpet chair clock coat desk drill fan guitar headset helmet jacket kettle keyboard lamp
laptop mattress microphone mirror monitor mouse oven phone pillow printer radio scarf shelf sofa speaker suitcase table
tablet tent toaster towel umbrella vacuum wallet watch
""")
SITES = words(
    "bluebird brightside cedar clearview dayline fairmont greenleaf harbor ironwood lakeside maple northstar oakhill riverside silverline skyport stonegate sunfield westwood wildrose"
)
ENDINGS = words("com org net edu info")
